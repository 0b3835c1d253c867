"""`polaris plan --server`: what the command line makes of an operator's answers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.program import Done, here
from polaris_operator import probes
from polaris_operator.planning import PATH

pytestmark = pytest.mark.unit

INDEX = {
    "apiVersion": "polaris.dev/v1alpha1",
    "kind": "PolarisIndex",
    "metadata": {"name": "handbook", "namespace": "team"},
    "spec": {"databaseRef": {"name": "main"}, "embedding": {"model": "e5", "dimension": 8}},
}
DATABASE = {
    "apiVersion": "polaris.dev/v1alpha1",
    "kind": "PolarisDatabase",
    "metadata": {"name": "main", "namespace": "team"},
    "spec": {"host": "db", "database": "rag", "credentials": {"secretRef": {"name": "login"}}},
}
STEP = {"reason": "SpecChanged", "sentence": "Do it", "statement": "SELECT 1", "destructive": True}
PLANNED = {
    "kind": "PolarisIndex",
    "namespace": "team",
    "name": "handbook",
    "hash": "sha256:0",
    "destructive": True,
    "steps": [STEP],
    "withheld": [],
    "aside": [],
    "blocked": None,
    "notices": [],
}
STANDS_BY = {"title": "Not leading", "status": 503, "code": "not-leading", "detail": "another one leads"}
DENIED = {
    "title": "Forbidden",
    "status": 403,
    "code": "forbidden",
    "detail": "you lack get on plan",
}


@contextmanager
def operator(*answers: tuple[int, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """One that gives these answers, the last for ever; yields its address and what it was asked."""
    asked: list[dict[str, Any]] = []

    def route(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        body = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        asked.append({"token": environ.get("HTTP_AUTHORIZATION"), "body": body})
        status, said = answers[min(len(asked), len(answers)) - 1]
        start_response(f"{status} X", [("Content-Type", "application/json"), ("Retry-After", "0")])
        return [json.dumps(said).encode()]

    with probes.serving("127.0.0.1", 0, live=bool, ready=bool, routes={PATH: route}) as port:
        yield f"http://127.0.0.1:{port}", asked


def plan(folder: Path, *arguments: str | Path, manifests: Iterable[Any] = (INDEX,)) -> Done:
    path = folder / "manifests.yaml"
    path.write_text(yaml.safe_dump_all(list(manifests)))
    return here("plan", "-f", path, *arguments)


def test_another_replica_is_asked_where_one_does_not_lead(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    with operator((503, STANDS_BY), (200, PLANNED)) as (server, asked):
        done = plan(tmp_path, "--server", server, "--token-file", token)
    assert done.code == 0, done.err
    assert done.out == (
        "PolarisIndex team/handbook: 1 step\n  1. Do it (SpecChanged) DESTRUCTIVE\n       SELECT 1;\n"
    )
    assert [one["token"] for one in asked] == ["Bearer secret"] * 2
    assert asked[1]["body"] == INDEX


def test_a_program_gets_the_answers_and_databases_are_left_out(tmp_path: Path) -> None:
    with operator((200, PLANNED)) as (server, asked):
        done = plan(tmp_path, "--server", server, "-o", "json", manifests=[DATABASE, INDEX])
    assert json.loads(done.out) == [PLANNED]
    assert "PolarisIndexes only" in done.err
    assert len(asked) == 1


def test_a_refusal_is_an_error_with_its_reason(tmp_path: Path) -> None:
    with operator((403, DENIED)) as (server, _):
        done = plan(tmp_path, "--server", server)
    assert (done.code, done.out) == (1, "")
    assert str(DENIED["detail"]) in done.err


def test_what_goes_with_a_server_only_is_wrong_without_one(tmp_path: Path) -> None:
    done = plan(tmp_path, "--token-file", tmp_path / "token")
    assert (done.code, "--server" in done.err) == (2, True)
    with operator((200, PLANNED)) as (server, _):
        assert plan(tmp_path, "--server", server, manifests=[DATABASE]).code == 1
    away = plan(tmp_path, "--server", server)
    assert (away.code, f"no operator answers at {server}" in away.err) == (1, True)
