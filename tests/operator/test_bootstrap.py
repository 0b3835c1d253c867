"""What administrators grant once: complete, repeatable, and what is printed is what works."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg2
import pytest
import yaml

from parts.servers import Database, connect, run
from polaris_cli.up import openbao as local_openbao
from polaris_cli.up.openbao import LocalOpenBao
from polaris_cli.up.postgres import LocalPostgres
from polaris_operator import bootstrap
from polaris_operator.bootstrap import Grant, Platform, VaultSetup
from polaris_operator.vault import TokenMethod, Vault

SETUP = VaultSetup(database="polaris", host="db", namespace="rag")


@pytest.mark.unit
def test_every_platform_gets_every_statement() -> None:
    for platform in Platform:
        text = bootstrap.text(platform, SETUP)
        for statement in bootstrap.statements("polaris"):
            assert statement in text, platform


@pytest.mark.unit
def test_without_vault_there_is_a_login_for_the_secret_instead() -> None:
    text = bootstrap.text(Platform.POSTGRESQL, SETUP, vault=False)
    assert "vault" not in text
    assert "polaris_issuer" not in text
    assert 'CREATE ROLE "polaris_admin" LOGIN' in text


@pytest.mark.unit
def test_the_manifest_for_cloudnativepg_is_yaml_with_the_statements_as_they_are() -> None:
    (cluster, *_) = bootstrap.parts(Platform.CLOUDNATIVEPG, SETUP)
    found = yaml.safe_load(cluster.text)["spec"]["bootstrap"]["initdb"]
    assert found["database"] == "polaris"
    assert [sql.strip() for sql in found["postInitApplicationSQL"]] == [
        f"{statement};" for statement in bootstrap.statements("polaris")
    ]


@pytest.mark.unit
@pytest.mark.parametrize("database", ['we"ird', "o'clock", "a;b"])
def test_a_database_may_be_called_anything(database: str) -> None:
    quoted = '"' + database.replace('"', '""') + '"'
    assert f"ON DATABASE {quoted} TO" in bootstrap.remedy(Grant.DATABASE, database)


@contextmanager
def as_superuser(database: Database) -> Iterator[psycopg2.extensions.cursor]:
    with closing(connect(database.dsn)) as connection, connection.cursor() as cursor:
        yield cursor


@pytest.mark.postgres
def test_the_statements_may_be_run_again_on_each_server(
    any_postgres: LocalPostgres, fresh_database: Callable[[LocalPostgres], Database]
) -> None:
    database = fresh_database(any_postgres)
    has_vector = run(database.dsn, "SELECT 1 FROM pg_available_extensions WHERE name = 'vector'")
    with as_superuser(database) as cursor:
        for _time in range(2):
            for grant in Grant:
                if grant == Grant.EXTENSION and not has_vector:
                    continue
                for statement in bootstrap.grant_statements(grant, database.name, "x"):
                    cursor.execute(statement)
    assert run(
        database.dsn,
        "SELECT rolcanlogin, rolcreaterole, rolsuper FROM pg_roles WHERE rolname = 'polaris_operator'",
    ) == [(False, True, False)]


@pytest.mark.postgres
def test_the_commands_for_vault_work_as_printed(
    postgres: LocalPostgres,
    fresh_database: Callable[[LocalPostgres], Database],
    openbao: LocalOpenBao,
    tmp_path: Path,
) -> None:
    """Typed in as they are, with the placeholder replaced; and then a login comes out."""
    database = fresh_database(postgres)
    run(database.dsn, "CREATE EXTENSION IF NOT EXISTS vector")
    with as_superuser(database) as cursor:
        for statement in bootstrap.statements(database.name, vault_password="s3cret"):
            cursor.execute(statement)
        # Roles are the server's: an earlier test may have made it with another password.
        cursor.execute("ALTER ROLE polaris_vault PASSWORD 's3cret'")
    setup = VaultSetup(
        host=postgres.host,
        port=postgres.port,
        database=database.name,
        sslmode="disable",
        mount="printed",
        namespace="rag",
        auth_mount="kubernetes-printed",
    )
    (tmp_path / "vault").symlink_to(local_openbao.binary())
    script = bootstrap.vault_commands(setup).replace(bootstrap.PASSWORD_PLACE, "s3cret")
    enable = "vault auth enable -path=kubernetes-printed kubernetes\n"
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "BAO_ADDR": openbao.address,
        "BAO_TOKEN": openbao.root_token,
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", enable + script],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with closing(Vault(openbao.address, TokenMethod(openbao.root_token), mount="printed")) as door:
        assert door.issues_members(bootstrap.VAULT_OPERATOR_ROLE, "polaris_operator")
        issued = door.issue(bootstrap.VAULT_OPERATOR_ROLE)
        dsn = database.dsn_of(issued.username, issued.password)
        assert run(dsn, "SET ROLE polaris_operator; SELECT current_user::text") == [("polaris_operator",)]
        door.revoke(issued.lease_id)
