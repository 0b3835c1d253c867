"""The page on installing: its commands run as they stand there, on an API server without a node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import yaml

from chart.rendered import CHART, ROOT, render
from docs.pages import block, blocks
from kube import build
from kube.cluster import Cluster
from parts import servers
from parts.servers import Database
from polaris_cli.up.postgres import PostgresServer
from polaris_operator import bootstrap

PAGE = ROOT / "docs" / "install.md"


@pytest.fixture
def shell(bare: Cluster, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Runs what a reader would, and uninstalls after that what was installed."""
    programs = [Path(sys.executable).parent, build.binaries(("helm",))["helm"].parent]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HELM_")} | {
        "PATH": os.pathsep.join([*map(str, programs), os.environ["PATH"]]),
        "KUBECONFIG": str(bare.kubeconfig),
        **{f"HELM_{home}_HOME": str(tmp_path / home) for home in ("CACHE", "CONFIG", "DATA")},
    }

    def run(script: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        return done.stdout

    yield run
    for release in json.loads(bare.helm("list", "-A", "-o", "json").stdout):
        bare.helm("uninstall", release["name"], "-n", release["namespace"], "--wait")
    bare.kubectl("delete", "--ignore-not-found", "-f", ROOT / "docs/examples/cluster")


@pytest.mark.kubernetes
def test_the_commands_of_the_page_work(bare: Cluster, shell: Callable[[str], str]) -> None:
    for script in blocks(PAGE, "sh"):
        shell(script)
    deployments = json.loads(bare.kubectl("get", "deployments", "-n", "rag", "-o", "json").stdout)["items"]
    service = next(d for d in deployments if d["metadata"]["name"] == "polaris-service")
    # What each step said still holds at the end.
    (container,) = service["spec"]["template"]["spec"]["containers"]
    assert container["ports"][0]["name"] == "https"
    assert service["spec"]["replicas"] == 3
    assert bare.kubectl("get", "networkpolicy/polaris-service", "hpa/polaris-service", "-n", "rag").stdout
    # Of the ServiceAccounts there, the operator may be the one that was named, and no other.
    for name, may in (("polaris-vault", "yes"), ("default", "no")):
        asked = ("create", f"serviceaccounts/{name}", "--subresource=token", "-n", "rag")
        whom = "--as=system:serviceaccount:rag:polaris-operator"
        assert bare.kubectl("auth", "can-i", *asked, whom, check=False).stdout.strip() == may
    shell(block(PAGE, "bash", "helm uninstall"))
    assert bare.kubectl("get", "pidx/handbook", "-n", "team-a", "-o", "name").stdout


def test_values_of_the_page_are_values(tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(block(PAGE, "yaml", "extraVolumes"), "utf-8")
    objects = render(f"--values={file}")
    pods = [o["spec"]["template"]["spec"] for o in objects if o["kind"] == "Deployment"]
    assert sum("keys" in [volume["name"] for volume in pod["volumes"]] for pod in pods) == 2


def test_the_image_of_the_examples_is_the_chart_s() -> None:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))["appVersion"]
    assert f"image: polaris:{version}\n" in (ROOT / "docs/examples/cluster/caller.yaml").read_text("utf-8")


def secret(folder: Path, keys: Mapping[str, str]) -> Path:
    """A Secret's folder, as a pod sees it."""
    folder.mkdir()
    for key, value in keys.items():
        (folder / key).write_text(value, "utf-8")
    return folder


def test_the_login_of_the_page_is_enough_for_the_migrations(
    postgres: PostgresServer, fresh_database: Callable[[PostgresServer], Database], tmp_path: Path
) -> None:
    database = fresh_database(postgres)
    login = "polaris_migrate"
    for statement in bootstrap.statements(database.name, vault=False):
        servers.run(database.dsn, str(statement))
    servers.run(database.dsn, block(PAGE, "sql", login))
    try:
        keys = {
            "username": login,
            "password": "a long random password",
            "host": postgres.host,
            "port": str(postgres.port),
            "dbname": database.name,
            "sslmode": "disable",
        }
        done = subprocess.run(
            [Path(sys.executable).parent / "polaris", "migrate", "-o", "json"],
            env={**os.environ, "POLARIS_DATABASE_SECRET": str(secret(tmp_path / "secret", keys))},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["before"] is None
    finally:
        servers.run(database.dsn, f"DROP ROLE {login}")
