from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import closing

import hvac
import psycopg2
import pytest
from hvac.exceptions import Forbidden

from kube.cluster import Cluster
from parts import vault
from parts.servers import Database, connect, run
from parts.vault import Administrator
from polaris_cli.up.openbao import LocalOpenBao
from polaris_cli.up.postgres import LocalPostgres, PostgresServer

pytestmark = pytest.mark.postgres


@pytest.fixture
def mount(
    any_postgres: LocalPostgres,
    fresh_database: Callable[[PostgresServer], Database],
    vault_administrator: Administrator,
) -> Iterator[tuple[str, Database]]:
    name = f"database-{secrets.token_hex(4)}"
    database = fresh_database(any_postgres)
    vault_administrator.connect_database(database, vault.grant_roles(database), mount=name)
    yield name, database
    vault_administrator.client.delete(f"sys/mounts/{name}")


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    name = f"vault-{secrets.token_hex(4)}"
    cluster.kubectl("create", "namespace", name)
    for account in ("polaris-vault", "reviewer"):
        cluster.kubectl("create", "serviceaccount", account, "--namespace", name)
    cluster.kubectl(
        *("create", "clusterrolebinding", name, "--clusterrole=system:auth-delegator"),
        f"--serviceaccount={name}:reviewer",
    )
    yield name
    cluster.kubectl("delete", "clusterrolebinding", name)
    cluster.kubectl("delete", "namespace", name, "--wait=false")


def test_the_engine_issues_a_login_of_the_operator_and_takes_it_back(
    mount: tuple[str, Database], vault_administrator: Administrator
) -> None:
    name, database = mount
    root = vault_administrator.client
    lease = vault.issue(root, mount=name)
    with closing(connect(database.dsn_of(lease.username, lease.password))) as session:
        with session.cursor() as cursor:
            cursor.execute("SET ROLE polaris_operator")
            cursor.execute("CREATE SCHEMA made_by_the_operator")
        vault.revoke(root, lease)
        with pytest.raises(psycopg2.Error), session.cursor() as cursor:
            cursor.execute("SELECT 1")
    with pytest.raises(psycopg2.OperationalError, match="authentication failed"):
        connect(database.dsn_of(lease.username, lease.password))
    assert run(database.dsn, "SELECT 1 FROM pg_roles WHERE rolname = %s", lease.username) == []


def test_a_token_and_an_approle_may_use_the_engine_and_nothing_else(
    mount: tuple[str, Database], vault_administrator: Administrator, openbao: LocalOpenBao
) -> None:
    name, _ = mount
    vault_administrator.write_policy(mount=name)
    role = vault_administrator.app_role()
    with vault.client(openbao.address) as visitor:
        visitor.auth.approle.login(role.role_id, role.secret_id)
        _uses_the_engine_and_nothing_else(visitor, name)
    with vault.client(openbao.address, vault_administrator.token()) as holder:
        _uses_the_engine_and_nothing_else(holder, name)


@pytest.mark.kubernetes
@pytest.mark.parametrize("any_postgres", ["postgres"], indirect=True)
def test_a_service_account_logs_in_with_a_token_for_vault_and_with_no_other(
    mount: tuple[str, Database],
    vault_administrator: Administrator,
    openbao: LocalOpenBao,
    cluster: Cluster,
    namespace: str,
) -> None:
    name, _ = mount
    vault_administrator.write_policy(mount=name)
    vault_administrator.allow_service_accounts(
        cluster.url,
        cluster.ca_file.read_text(),
        reviewer=cluster.token(namespace, "reviewer"),
        mount=name,
    )
    with vault.client(openbao.address) as visitor:
        login = visitor.auth.kubernetes.login
        token = cluster.token(namespace, "polaris-vault", audience="vault")
        login("polaris", token, mount_point=name)
        _uses_the_engine_and_nothing_else(visitor, name)
        for other in (
            cluster.token(namespace, "polaris-vault"),
            cluster.token(namespace, "default", audience="vault"),
        ):
            with pytest.raises(Forbidden):
                login("polaris", other, mount_point=name)


def _uses_the_engine_and_nothing_else(client: hvac.Client, mount: str) -> None:
    assert vault.issue(client, mount=mount).username
    with pytest.raises(Forbidden):
        client.read("sys/policy")
    with pytest.raises(Forbidden):
        client.write_data(f"{mount}/roles/polaris-operator", data={"db_name": "polaris"})
