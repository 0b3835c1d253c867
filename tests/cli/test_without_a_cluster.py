"""`bootstrap`, `migrate`, `plan`, `apply` and `get` on a database of one's own, with nothing else running."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from psycopg2 import sql

from cli.program import Done, here
from parts.servers import Database, run
from polaris_cli.up.postgres import LocalPostgres
from polaris_migrations import HEAD

pytestmark = pytest.mark.postgres

# As a worker says what it embeds.
OFFER = "INSERT INTO polaris.models VALUES ('default', 'multilingual-e5-small', '1', 'test', 384)"


@dataclass(frozen=True)
class Place:
    """A data folder, a database in which administrators have done their part, and manifests."""

    data: Path
    database: Database
    url: str
    """Of the operator's login."""
    manifests: Path

    def polaris(self, *arguments: str | Path) -> Done:
        return here(*arguments, variables={"POLARIS_DATA": str(self.data)})

    def write(self, name: str, manifest: dict[str, object]) -> Path:
        file = self.manifests / f"{name}.yaml"
        file.write_text(yaml.safe_dump(manifest))
        return file


def database_manifest(database: Database) -> dict[str, object]:
    return {
        "apiVersion": "polaris.dev/v1alpha1",
        "kind": "PolarisDatabase",
        "metadata": {"name": "main"},
        "spec": {
            "host": database.server.host,
            "port": database.server.port,
            "database": database.name,
            "tls": {"mode": "disable"},
            "credentials": {"secretRef": {"name": "admin"}},
        },
    }


def index_manifest(name: str, **spec: object) -> dict[str, object]:
    embedding = {"model": "multilingual-e5-small", "dimension": 384}
    return {
        "apiVersion": "polaris.dev/v1alpha1",
        "kind": "PolarisIndex",
        "metadata": {"name": name},
        "spec": {"databaseRef": {"name": "main"}, "embedding": embedding, **spec},
    }


@pytest.fixture
def place(
    postgres: LocalPostgres, fresh_database: Callable[[LocalPostgres], Database], tmp_path: Path
) -> Iterator[Place]:
    database = fresh_database(postgres)
    granted = here(
        "bootstrap", "--apply", "--no-vault", "--database", database.name, "--database-url", database.dsn
    )
    assert granted.code == 0, granted.err
    username, password = f"test_admin_{secrets.token_hex(4)}", secrets.token_urlsafe(12)
    role = sql.Identifier(username)
    make = sql.SQL("CREATE ROLE {} LOGIN PASSWORD %s IN ROLE polaris_operator").format(role)
    run(database.dsn, make, password)
    data = tmp_path / "data"
    secret = data / "secrets" / "default" / "admin"
    secret.mkdir(parents=True)
    (secret / "username").write_text(username)
    (secret / "password").write_text(password)
    (tmp_path / "manifests").mkdir()
    yield Place(
        data, database, f"{database.dsn_of(username, password)}?sslmode=disable", tmp_path / "manifests"
    )
    run(database.dsn, sql.SQL("DROP ROLE IF EXISTS {}").format(role))


@pytest.fixture
def applied(place: Place) -> Place:
    """The same with a PolarisDatabase that is ready."""
    done = place.polaris("apply", "-f", place.write("main", database_manifest(place.database)))
    assert done.code == 0, done.err
    return place


def test_bootstrap_may_be_applied_again_and_prints_what_is_left_for_vault(place: Place) -> None:
    arguments = ["bootstrap", "--apply", "--database", place.database.name]
    done = here(*arguments, "--database-url", place.database.dsn)
    assert done.code == 0
    assert "CREATE EXTENSION" not in done.out
    assert "vault write" in done.out
    assert "<a long random password>" not in done.out


def test_bootstrap_says_what_postgresql_refused_and_no_password(place: Place) -> None:
    done = here("bootstrap", "--apply", "--database", place.database.name, "--database-url", place.url)
    assert done.code == 1
    assert "PostgreSQL refused '" in done.err
    assert "SCRAM" not in done.err
    assert len(done.err.splitlines()) == 1


def test_bootstrap_draws_no_login_where_vault_issues_it(place: Place, tmp_path: Path) -> None:
    arguments = ["bootstrap", "--apply", "--database-url", place.database.dsn, "--login-to", str(tmp_path)]
    done = here(*arguments)
    assert done.code == 2
    assert "--login-to goes with --apply --no-vault" in done.err


def test_migrate_goes_up_once_and_down_again(place: Place) -> None:
    up, again, down = (
        here("migrate", *flags, "--database-url", place.url)
        for flags in ([], [], ["--down", "base", "--yes"])
    )
    assert up.out == f"the catalog went from nothing to {HEAD}\n"
    assert again.out == f"the catalog is at {HEAD} already\n"
    assert down.out == f"the catalog went from {HEAD} to nothing\n"


def test_migrate_goes_down_only_where_somebody_says_yes(place: Place) -> None:
    here("migrate", "--database-url", place.url)
    down = here("migrate", "--down", "base", "--database-url", place.url)
    assert down.code == 1
    assert f"Take the catalog of {place.database.name} on 127.0.0.1 back to base" in down.err
    assert here("migrate", "--database-url", place.url).out == f"the catalog is at {HEAD} already\n"


def test_migrate_takes_the_login_of_a_secrets_folder(place: Place, tmp_path: Path) -> None:
    folder = tmp_path / "login"
    folder.mkdir()
    found = re.fullmatch(r"postgresql://(.+):(.+)@(.+):(\d+)/(.+)\?sslmode=disable", place.url)
    assert found
    for key, value in zip(("username", "password", "host", "port", "dbname"), found.groups(), strict=True):
        (folder / key).write_text(value)
    (folder / "sslmode").write_text("disable")
    done = here("migrate", "--database-secret", folder, "-o", "json")
    assert json.loads(done.out) == {"before": None, "after": HEAD}


def test_a_database_is_planned_applied_and_shown(place: Place) -> None:
    manifest = place.write("main", database_manifest(place.database))
    plan = place.polaris("plan", "-f", manifest)
    assert plan.out.startswith("PolarisDatabase default/main: 1 step\n")
    assert f"Bring the catalog to {HEAD}" in plan.out
    assert place.polaris("get").err == f"there are no objects in {place.data}\n"
    applied = place.polaris("apply", "-f", manifest)
    assert applied.code == 0, applied.err
    assert applied.out.startswith("PolarisDatabase default/main: ready: ")
    assert "PolarisDatabase default/main: Bring the catalog to" in applied.err  # each step is told
    assert place.polaris("plan", "-f", manifest).out == "PolarisDatabase default/main: nothing to do\n"
    assert place.polaris("get").out.splitlines()[1].split()[:3] == ["PolarisDatabase", "default/main", "True"]
    assert (place.data / "secrets" / "default" / "polaris-query" / "password").exists()


def test_an_index_that_nobody_can_embed_is_planned_as_that_and_not_made(applied: Place) -> None:
    manifest = applied.write("notes", index_manifest("notes"))
    plan = applied.polaris("plan", "-f", manifest)
    assert plan.code == 0
    assert "PolarisIndex default/notes: waits\n  ModelUnavailable: " in plan.out
    done = applied.polaris("apply", "-f", manifest, "-o", "json")
    assert done.code == 1
    [outcome] = json.loads(done.out)
    assert (outcome["name"], outcome["ready"], outcome["reason"]) == ("notes", False, "ModelUnavailable")


def test_an_index_is_planned_statement_by_statement_and_applied(applied: Place) -> None:
    run(applied.database.dsn, OFFER)
    manifest = applied.write("notes", index_manifest("notes"))
    plan = applied.polaris("plan", "-f", manifest)
    assert "INSERT INTO polaris.indexes" in plan.out
    done = applied.polaris("apply", "-f", manifest)
    assert done.code == 0, done.err
    assert applied.polaris("plan", "-f", manifest).out == "PolarisIndex default/notes: nothing to do\n"
    shown = applied.polaris("get", "notes").out
    assert yaml.safe_load(shown)["status"]["active"]["generation"] == 1


def test_an_index_that_waits_for_approval_is_made_by_the_hash_that_was_shown(applied: Place) -> None:
    run(applied.database.dsn, OFFER)
    manifest = applied.write("notes", index_manifest("notes", change={"approval": "All"}))
    [planned] = json.loads(applied.polaris("plan", "-f", manifest, "-o", "json").out)
    assert planned["blocked"]["reason"] == "ApprovalRequired"
    assert planned["steps"] == []
    approval = {"approval": "All", "approvedPlan": planned["hash"]}
    manifest = applied.write("notes", index_manifest("notes", change=approval))
    done = applied.polaris("apply", "-f", manifest)
    assert done.code == 0, done.err
    assert applied.polaris("plan", "-f", manifest).out == "PolarisIndex default/notes: nothing to do\n"


def test_one_file_may_hold_both_and_its_order_does_not_matter(applied: Place) -> None:
    run(applied.database.dsn, OFFER)
    both = applied.manifests / "both.yaml"
    both.write_text(yaml.safe_dump_all([index_manifest("notes"), database_manifest(applied.database)]))
    done = applied.polaris("apply", "-f", both)
    assert done.code == 0, done.err
    assert [line.partition(":")[0] for line in done.out.splitlines()] == [
        "PolarisDatabase default/main",
        "PolarisIndex default/notes",
    ]


def test_an_index_without_its_database_is_planned_as_that(place: Place) -> None:
    plan = place.polaris("plan", "-f", place.write("notes", index_manifest("notes")))
    assert "DatabaseNotFound: there is no PolarisDatabase default/main" in plan.out


def test_a_database_that_does_not_answer_is_told_and_waited_for_no_longer_than_asked(place: Place) -> None:
    manifest = database_manifest(place.database)
    spec = manifest["spec"]
    assert isinstance(spec, dict)
    spec["port"] = 9
    file = place.write("main", manifest)
    assert "DatabaseUnavailable" in place.polaris("plan", "-f", file).out
    done = place.polaris("apply", "-f", file, "--timeout", "0")
    assert done.code == 1
    assert "not ready in time" in done.out


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("kind: [", "while parsing"),
        ("kind: Secret", "secrets do not belong into the folder of manifests"),
        ("kind: Pod\napiVersion: v1", "apiVersion v1, kind Pod is none of ours"),
        ("", "there is no manifest in"),
        (yaml.safe_dump(index_manifest("x" * 49)), "metadata.name must be 1 to 48 characters"),
        (yaml.safe_dump(index_manifest("x", colour=1)), "PolarisIndex default/x: /spec/colour"),
    ],
)
def test_a_manifest_that_is_wrong_is_one_sentence(place: Place, text: str, sentence: str) -> None:
    file = place.manifests / "wrong.yaml"
    file.write_text(text)
    for command in ("plan", "apply"):
        done = place.polaris(command, "-f", file)
        assert done.code == 1
        assert sentence in done.err
        assert len(done.err.splitlines()) == 1


def test_a_manifest_that_is_not_there_is_wrong_usage(place: Place) -> None:
    assert place.polaris("plan", "-f", "/nowhere").code == 2
    assert place.polaris("apply", "-f", "/nowhere").code == 2


def test_data_of_an_operator_over_another_folder_is_left_alone(applied: Place) -> None:
    (applied.data / "manifests").rename(applied.data / "elsewhere")
    done = applied.polaris("apply", "-f", applied.manifests)
    assert done.code == 1
    assert "belongs to an operator over another folder of manifests" in done.err
