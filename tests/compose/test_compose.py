"""compose.yaml: read as Docker Compose reads it, held to what there is, and its programs run as it says.

No container is started here. What stands in the file for a program (command, environment, order, health) is
run as a process with PostgreSQL from the wheel; names of containers become addresses, volumes folders.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from cli.program import Done, command, environment, polaris
from kube import leash
from parts import servers
from pipeline.build import ROOT, compose
from polaris import settings
from polaris_cli.up import ports
from polaris_cli.up.postgres import LocalPostgres

FILE = ROOT / "compose.yaml"
POSTGRES = "pgvector/pgvector:pg18"
# Inside a container each has its own; here all are on one machine.
PORTS = {"operator": 9090, "worker": 9091, "embedder": 8081, "service": 8080}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """The services as Compose understands them."""
    found: dict[str, Any] = compose(FILE)["services"]
    return found


def ours(services: dict[str, Any]) -> dict[str, Any]:
    """Those that run the program `polaris`."""
    return {name: each for name, each in services.items() if each["command"][0] in PROGRAMS}


PROGRAMS = {
    "bootstrap": None,
    "operator": settings.OperatorSettings,
    "serve": settings.ServiceSettings,
    "worker": settings.WorkerSettings,
    "embedder": settings.EmbedderSettings,
    "--help": settings.ClientSettings,
}


def test_every_image_is_one_that_there_is(services: dict[str, Any]) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    built = {each["image"]: each["build"]["target"] for each in services.values() if "build" in each}
    assert {each["image"] for each in services.values()} == {*built, POSTGRES}
    for image, target in built.items():
        assert image == {"polaris": "polaris:local", "embedder": "polaris-embedder:local"}[target]
        assert re.search(rf"^FROM \S+ AS {target}$", dockerfile, re.MULTILINE)
    assert "USER 10001:10001" in dockerfile


def test_every_setting_is_one_of_its_program(services: dict[str, Any]) -> None:
    for name, each in ours(services).items():
        model = PROGRAMS[each["command"][0]]
        variables = set(each.get("environment") or {})
        if model is None:
            assert variables == {"POLARIS_DATABASE_URL"}
        else:
            fields = {f"POLARIS_{field_.upper()}" for field_ in model.model_fields}
            assert variables <= fields, f"{name}: {variables - fields}"


def test_nothing_has_more_rights_than_it_needs(services: dict[str, Any]) -> None:
    for name, each in services.items():
        assert each["read_only"], name
        assert each["cap_drop"] == ["ALL"], name
        assert each["security_opt"] == ["no-new-privileges:true"], name
        assert each["user"] not in ("0:0", "root") or each["cap_add"] == ["CHOWN", "DAC_OVERRIDE"], name
    assert [name for name, each in services.items() if each["user"] == "0:0"] == ["prepare"]


def test_only_the_service_is_reached_and_from_this_machine_only(services: dict[str, Any]) -> None:
    published = {name: each["ports"] for name, each in services.items() if each.get("ports")}
    assert list(published) == ["service"]
    assert [each["host_ip"] for each in published["service"]] == ["127.0.0.1"]
    assert compose(FILE)["networks"]["inside"]["internal"]
    assert [name for name, each in services.items() if "outside" in each["networks"]] == ["service"]


def test_no_password_stands_in_it(services: dict[str, Any]) -> None:
    for name, each in services.items():
        for variable, value in (each.get("environment") or {}).items():
            assert not re.search("PASSWORD|KEY|SECRET_ID", variable), name
            assert not re.search(r"://[^/@]*:[^/@]*@", value), name


def test_the_login_of_the_operator_is_seen_by_nobody_else(services: dict[str, Any]) -> None:
    sees = {
        volume: sorted(
            name
            for name, each in services.items()
            for mount in each.get("volumes", [])
            if mount["source"] == volume
        )
        for volume in ("login", "socket", "token", "tokens")
    }
    assert sees == {
        "login": ["grant", "operator", "prepare"],
        "socket": ["grant", "postgres"],
        "token": ["polaris", "prepare"],
        "tokens": ["prepare", "service"],
    }


def test_postgresql_gets_a_password_that_nobody_knows(services: dict[str, Any], tmp_path: Path) -> None:
    """The line that starts it, with a program in the place of the image's."""
    starts = tmp_path / "docker-entrypoint.sh"
    starts.write_text('#!/bin/sh\nprintf "%s %s" "$1" "$POSTGRES_PASSWORD"\n')
    starts.chmod(0o755)
    each = services["postgres"]
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = [
        subprocess.run(
            [*each["entrypoint"], *each["command"]], env=path, capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(2)
    ]
    assert [words[0] for words in done] == ["postgres", "postgres"]
    assert len({words[1] for words in done}) == 2
    assert all(len(words[1]) >= 44 for words in done)


@dataclass
class Machine:
    """Containers as processes: volumes are folders, names of containers addresses of this machine."""

    services: dict[str, Any]
    folder: Path
    postgres: LocalPostgres
    ports: dict[str, int] = field(default_factory=lambda: {name: ports.any_free() for name in PORTS})

    def path(self, service: str, text: str) -> str:
        """A path of a container, on this machine."""
        for mount in sorted(self.services[service].get("volumes", []), key=lambda each: -len(each["target"])):
            if text == mount["target"] or text.startswith(f"{mount['target']}/"):
                folder = self.folder / Path(mount["source"]).name
                return str(folder) + text[len(mount["target"]) :]
        return text

    def here(self, service: str, text: str) -> str:
        """A word of the file, on this machine."""
        text = self.path(service, text).replace("0.0.0.0", "127.0.0.1")  # noqa: S104
        for name, port in PORTS.items():
            text = text.replace(f"{name}:{port}", f"127.0.0.1:{self.ports[name]}")
        if service in PORTS:
            text = text.replace(f"127.0.0.1:{PORTS[service]}", f"127.0.0.1:{self.ports[service]}")
        return text

    def variables(self, service: str) -> dict[str, str]:
        """Its environment, with a port of its own and without those of others."""
        own = {
            key: self.here(service, str(value))
            for key, value in (self.services[service].get("environment") or {}).items()
        }
        if service in PORTS:
            metrics = "_METRICS" if service in ("operator", "worker") else ""
            own[f"POLARIS{metrics}_PORT"] = str(self.ports[service])
            if metrics:
                own["POLARIS_METRICS_HOST"] = "127.0.0.1"
        return own

    def prepare(self) -> None:
        """What `prepare` does, for the user of the tests."""
        each = self.services["prepare"]
        (script,) = each["command"]
        for mount in each["volumes"]:
            folder = self.folder / mount["source"]
            folder.mkdir()
            script = re.sub(rf"(?<![\w/]){mount['target']}(?=[/ \n;])", str(folder), script)
        script = script.replace("10001:10001", f"{os.getuid()}:{os.getgid()}")
        for _ in range(2):  # each `up` does it again
            subprocess.run([*each["entrypoint"], script], check=True)
        # Two volumes in one another are one folder here.
        own = self.folder / "data/secrets/default/polaris-admin"
        own.rmdir()
        own.symlink_to(self.folder / "login")

    def manifests(self) -> None:
        """The folder of manifests, with PostgreSQL where it is here."""
        folder = self.folder / "compose"
        folder.mkdir()
        for file in (ROOT / "docs/examples/compose").glob("*.yaml"):
            manifest = yaml.safe_load(file.read_text("utf-8"))
            if manifest["kind"] == "PolarisDatabase":
                assert manifest["spec"]["host"] in self.services
                manifest["spec"] |= {"host": self.postgres.host, "port": self.postgres.port}
            (folder / file.name).write_text(yaml.safe_dump(manifest))

    def run(self, service: str, *arguments: str) -> Done:
        """Run what ends, with the arguments that a person gives or those of the file."""
        words = arguments or [self.here(service, word) for word in self.services[service]["command"]]
        return polaris(*words, variables=self.variables(service), timeout=120)

    @contextlib.contextmanager
    def up(self, *names: str) -> Iterator[None]:
        """Start what stays, in that order, each after the health of those before it."""
        with contextlib.ExitStack() as running:
            for name in names:
                words = [self.here(name, word) for word in self.services[name]["command"]]
                log = self.folder / f"{name}.log"
                with log.open("wb") as output:
                    started = leash.start(command(*words), output, env=environment(**self.variables(name)))
                running.callback(leash.stop, started)
            for name in names:
                self._await(name)
            yield

    def _await(self, name: str) -> None:
        _, _, *words = self.services[name]["healthcheck"]["test"]
        check = [sys.executable, *(self.here(name, word) for word in words)]
        deadline = time.monotonic() + 120
        while subprocess.run(check, capture_output=True, check=False).returncode:
            log = self.folder / f"{name}.log"
            assert time.monotonic() < deadline, log.read_text("utf-8")[-3000:]
            time.sleep(0.2)


@pytest.fixture
def machine(services: dict[str, Any], tmp_path: Path) -> Iterator[Machine]:
    """The file on this machine, with a PostgreSQL of its own: roles are a whole server's."""
    with servers.running(servers.postgres18()) as postgres:
        services["grant"]["environment"]["POLARIS_DATABASE_URL"] = postgres.superuser_dsn
        yield Machine(services, tmp_path, postgres)


@pytest.mark.postgres
def test_a_document_goes_in_and_a_cited_answer_comes_out(machine: Machine) -> None:
    machine.prepare()
    machine.manifests()
    for _ in range(2):  # each `up` does it again
        granted = machine.run("grant")
        assert granted.code == 0, granted.err
    with machine.up("operator", "embedder", "worker", "service"):
        token = (machine.folder / "token/token").read_text().strip()
        address = f"http://127.0.0.1:{machine.ports['service']}"
        path = f"{address}/v1/indexes/default/notes/documents/kettle"
        document = {"text": "The blue kettle has a warranty of seven years."}
        with httpx.Client(headers={"authorization": f"Bearer {token}"}, timeout=60) as client:
            assert httpx.put(path, json=document).status_code == 401
            deadline = time.monotonic() + 90
            while (put := client.put(path, json=document)).status_code in (404, 503):
                assert time.monotonic() < deadline, put.text
                time.sleep(0.3)
            assert put.status_code == 202, put.text
            seen = {"query": "kettle", "after_sequence": put.json()["sequence"], "timeout_ms": 30_000}
            assert client.post(path.replace("documents/kettle", "search"), json=seen).is_success
        asked = machine.run(
            "polaris", "ask", "notes", "How long is the warranty of the kettle?", "-o", "json"
        )
        assert asked.code == 0, asked.err
        (citation, *_) = json.loads(asked.out)["citations"]
        assert citation["document"] == "kettle"
        assert citation["text"] in document["text"]
