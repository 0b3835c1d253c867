"""`polaris up`: from an empty folder to a cited answer; stopped, killed, started again."""

from __future__ import annotations

import hashlib
import json
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from cli.program import polaris
from cli.test_files import PORTUGUESE, pdf
from cli.up import Up

pytestmark = pytest.mark.timeout(300)

MIB = 2**20
NOTES = """
apiVersion: polaris.dev/v1alpha1
kind: PolarisIndex
metadata: {name: notes}
spec:
  databaseRef: {name: main}
  embedding: {model: multilingual-e5-small, dimension: 384}
  attributes:
  - {name: year, type: integer}
"""


@pytest.fixture(scope="module")
def notes(up: Up, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An index that is a person's own."""
    manifest = tmp_path_factory.mktemp("manifests") / "notes.yaml"
    manifest.write_text(NOTES)
    done = up.polaris("apply", "-f", manifest)
    assert done.code == 0, done.err
    return "notes"


def wait_for(what: str, ready: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < until, f"waited {seconds} s for {what}"
        time.sleep(0.1)


def asked(up: Up, question: str) -> dict[str, Any]:
    done = up.polaris("ask", "handbook", question, "-o", "json")
    assert done.code == 0, done.err
    answer: dict[str, Any] = json.loads(done.out)
    return answer


def put(up: Up, index: str, identifier: str, text: str) -> None:
    path = f"{up.address}/v1/indexes/default/{index}/documents/{identifier}"
    assert httpx.put(path, json={"text": text}).status_code in (200, 202)


def stored(up: Up, index: str, identifier: str) -> str | None:
    path = f"{up.address}/v1/indexes/default/{index}/documents/{identifier}"
    answer = httpx.get(path)
    return answer.json()["text"] if answer.is_success else None


def assert_citations_hold(up: Up, answer: dict[str, Any]) -> None:
    """Repeat by hand what every citation promises."""
    assert answer["citations"]
    for citation in answer["citations"]:
        path = f"/v1/indexes/default/handbook/documents/{quote(citation['document'])}"
        text = httpx.get(up.address + path, params={"version": citation["version"]}).json()["text"]
        start, end = citation["span"]
        assert text[start:end] == citation["text"]
        assert hashlib.sha256(text[start:end].encode()).hexdigest() == citation["sha256"]


# --- the first question ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "page"),
    [
        ("How do I delete a document?", "handbook/en/deleting.md"),
        ("Como funcionam as citações?", "handbook/pt/respostas-e-citacoes.md"),
    ],
)
def test_the_first_question_is_answered_with_citations_that_hold(up: Up, question: str, page: str) -> None:
    answer = asked(up, question)
    assert not answer["refused"]
    assert page in {citation["document"] for citation in answer["citations"]}
    assert_citations_hold(up, answer)


def test_what_the_handbook_does_not_know_is_refused(up: Up) -> None:
    answer = asked(up, "Qual é a capital da França?")
    assert answer["refused"]
    assert answer["citations"] == []


def test_answers_and_hits_are_shown_to_people(up: Up) -> None:
    answer = up.polaris("ask", "default/handbook", "O que é o POLARIS?")
    assert answer.code == 0
    assert "Sources\n" in answer.out
    assert "handbook/pt/o-que-e-polaris.md (version 1) [" in answer.out
    hits = up.polaris("search", "handbook", "credenciais", "-k", "2", "--filter", '{"eq": ["lang", "pt"]}')
    assert hits.out.startswith("1. handbook/pt/credenciais.md [")
    assert "\n2. handbook/pt/" in hits.out
    explained = up.polaris("search", "handbook", "roles", "-k", "1", "-o", "json")
    assert len(json.loads(explained.out)["hits"]) == 1
    assert "\x1b" not in answer.out + hits.out + explained.out


def test_a_smoke_test_goes_from_a_document_to_its_citation_and_leaves_nothing(up: Up) -> None:
    before = httpx.get(f"{up.address}/v1/indexes/default/handbook").json()["documents"]
    done = up.polaris("smoke", "handbook", "-o", "json")
    assert done.code == 0, done.err
    said = json.loads(done.out)
    assert "at dusk" in said["answer"]
    assert stored(up, "handbook", said["document"]) is None
    assert httpx.get(f"{up.address}/v1/indexes/default/handbook").json()["documents"] == before
    asked_only = up.polaris("smoke", "handbook", "--read-only")
    assert asked_only.out.startswith("default/handbook answers (")
    ready = up.polaris("smoke")
    assert ready.out.startswith(f"{up.address} answers: ok (")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["search", "nothing", "x"], "nothing"),
        (["smoke", "nothing"], "nothing"),
        (["ask", "handbook", "x", "--filter", '{"eq": ["colour", 1]}'], "colour"),
        (["load", "nothing", __file__], "nothing"),
        (["get", "nothing"], "there is no default/nothing in"),
    ],
)
def test_what_the_service_refuses_is_one_sentence(up: Up, arguments: list[str], sentence: str) -> None:
    done = up.polaris(*arguments)
    assert done.code == 1
    assert sentence in done.err
    assert len(done.err.splitlines()) == 1


def test_it_takes_little_memory_when_idle(up: Up) -> None:
    total = sum(process.memory_full_info().pss for process in up.processes())
    assert total < 1.2 * 1024 * MIB


# --- an index of one's own ---------------------------------------------------------------------


def test_a_plan_shows_statements_and_changes_nothing(up: Up, tmp_path: Path) -> None:
    manifest = tmp_path / "planned.yaml"
    manifest.write_text(NOTES.replace("notes", "planned"))
    shown = up.polaris("plan", "-f", manifest)
    assert shown.code == 0, shown.err
    assert "PolarisIndex default/planned: " in shown.out
    assert "INSERT INTO polaris.indexes" in shown.out.replace('"', "")
    [planned] = json.loads(up.polaris("plan", "-f", manifest, "-o", "json").out)
    assert planned["steps"]
    assert planned["blocked"] is None
    assert up.polaris("get", "planned").code == 1


def test_what_was_applied_is_shown_as_a_table_and_in_full(up: Up, notes: str) -> None:
    table = up.polaris("get")
    assert table.out.splitlines()[0].split() == (
        ["KIND", "NAME", "READY", "REASON", "ROWS", "BUILD", "RECALL", "MESSAGE"]
    )
    assert "PolarisIndex     default/notes " in table.out
    [document] = json.loads(up.polaris("get", notes, "-o", "json").out)
    assert document["status"]["observedGeneration"] == document["metadata"]["generation"]
    assert "PolarisIndex default/notes: nothing to do" in up.polaris("plan", "-f", up.data / "manifests").out


def test_a_change_that_is_not_made_yet_is_planned_and_told(up: Up, notes: str, tmp_path: Path) -> None:
    manifest = tmp_path / "changed.yaml"
    manifest.write_text(NOTES.replace("dimension: 384", "dimension: 384, revision: '2'"))
    plan = up.polaris("plan", "-f", manifest)
    assert f"PolarisIndex default/{notes}: waits" in plan.out
    assert "ModelUnavailable" in plan.out
    applied = up.polaris("apply", "-f", manifest)
    assert applied.code == 1
    assert "ModelUnavailable" in applied.out
    manifest.write_text(NOTES)
    assert up.polaris("apply", "-f", manifest).code == 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("{name: main}", "{name: other}"), "databaseRef cannot be changed"),
        (("dimension: 384", "dimension: none"), "/spec/embedding/dimension"),
        (("attributes:", "attribute:"), "/spec/attribute"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused_before_anything_happens(
    up: Up, notes: str, tmp_path: Path, change: tuple[str, str], sentence: str
) -> None:
    manifest = tmp_path / "wrong.yaml"
    manifest.write_text(NOTES.replace(*change))
    before = (up.data / "manifests" / f"polarisindex.default.{notes}.yaml").read_text()
    for command in ("plan", "apply"):
        done = up.polaris(command, "-f", manifest)
        assert done.code == 1
        assert sentence in done.err
        assert done.out == ""
    assert (up.data / "manifests" / f"polarisindex.default.{notes}.yaml").read_text() == before


def test_files_of_every_format_are_loaded_and_found(up: Up, notes: str, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "texto.txt").write_bytes(PORTUGUESE.encode("cp1252"))
    (folder / "pagina.html").write_text("<title>Receita</title><p>O bolo de cenoura leva três ovos.</p>")
    (folder / "relatorio.pdf").write_bytes(pdf("As vendas de bicicletas cresceram no inverno."))
    (folder / "nota.md").write_text(
        "---\nattributes: {year: 2026}\n---\n# Gatos\n\nO gato dorme no telhado.\n"
    )
    (folder / "linhas.ndjson").write_text(
        '{"id": "lua", "text": "A lua gira em torno da Terra."}\n{"id": "sol"}\n'
    )
    (folder / "foto.png").write_bytes(b"\x89PNG\0")
    (folder / "errado.md").write_text("---\nattributes: {year: muito}\n---\nTexto.\n")
    done = up.polaris("load", notes, folder, "-o", "json")
    assert done.code == 1
    result = json.loads(done.out)
    assert (result["new"], result["searchable"]) == (5, True)
    assert [Path(each["source"]).name for each in result["refused"]] == ["errado.md", "linhas.ndjson:2"]
    assert [Path(each["source"]).name for each in result["skipped"]] == ["foto.png"]
    assert [each["encoding"] for each in result["assumed"]] == ["Windows-1252"]
    refused = [line for line in done.err.splitlines() if "was refused" in line]
    assert len(refused) == 2
    assert "year" in refused[0]
    for question, document in {
        "bolo de cenoura": "files/pagina.html",
        "vendas de bicicletas": "files/relatorio.pdf",
        "onde dorme o gato?": "files/nota.md",
        "the moon and the earth": "lua",
        "leu o índice às pressas": "files/texto.txt",
    }.items():
        hits = json.loads(up.polaris("search", notes, question, "-k", "1", "-o", "json").out)["hits"]
        assert hits[0]["document"] == document


def test_loading_again_changes_nothing(up: Up, notes: str, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    folder.mkdir()
    (folder / "a.txt").write_text("Uma frase.")
    assert "1 new or changed, 0 as before" in up.polaris("load", notes, folder).out
    assert "0 new or changed, 1 as before" in up.polaris("load", notes, folder, "--no-wait").out


def test_nothing_to_load_is_a_failure(up: Up, notes: str, tmp_path: Path) -> None:
    done = up.polaris("load", notes, tmp_path)
    assert done.code == 1
    assert "there is nothing to load in" in done.err


def test_doctor_finds_nothing_missing_beside_it(up: Up) -> None:
    done = up.polaris("doctor", "--port", str(up.port), "-o", "json")
    assert done.code == 0, done.out
    findings = {finding["about"]: finding for finding in json.loads(done.out)}
    assert f"process {up.pid}" in findings["data"]["sentence"]
    assert findings["service"]["verdict"] == "ok"


# --- its life ----------------------------------------------------------------------------------


def test_a_second_one_on_the_same_data_is_refused_with_the_pid(up: Up) -> None:
    done = up.polaris("up", "--port", "0")
    assert done.code == 1
    assert done.err == f"polaris: polaris up already runs on {up.data} (process {up.pid})\n"
    assert "stop it first" in up.polaris("down", "--yes").err


def test_a_port_that_is_taken_is_said_and_nothing_is_started(open_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = polaris("up", "--data", open_path / "data", "--port", port)
        checked = polaris("doctor", "--data", open_path / "data", "--port", port)
    assert done.code == 1
    assert f"port {port} of 127.0.0.1 is in use" in done.err
    assert "--port or POLARIS_PORT" in done.err
    assert not list((open_path / "data" / "run").iterdir())
    assert checked.code == 1
    assert f"MISSING port: port {port} of 127.0.0.1 is in use" in checked.out


def test_programs_that_are_killed_come_back_by_themselves(up: Up) -> None:
    killed = [process for process in up.processes() if {"serve", "embedder"} & set(process.cmdline())]
    assert len(killed) == 2
    for process in killed:
        process.kill()
    wait_for("an answer", lambda: up.polaris("ask", "handbook", "What is POLARIS?").code == 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_it_leaves_nothing_running_and_finds_its_data_again(
    up: Up, notes: str, number: signal.Signals
) -> None:
    put(up, notes, f"before-{number.name}", "O que foi escrito antes.")
    assert up.stop(number) == 0
    said = up.start()
    assert "handbook, in English" not in said  # it is there
    assert stored(up, notes, f"before-{number.name}") == "O que foi escrito antes."
    assert_citations_hold(up, asked(up, "Como funcionam as citações?"))


def test_killed_at_once_it_loses_nothing_that_was_acknowledged(up: Up, notes: str) -> None:
    for number in range(20):
        put(up, notes, f"killed-{number}", f"Documento número {number}.")
    up.kill()
    up.start()
    assert [stored(up, notes, f"killed-{number}") for number in range(20)] == (
        [f"Documento número {number}." for number in range(20)]
    )
    path = f"{up.address}/v1/indexes/default/{notes}"
    wait_for("the workers", lambda: httpx.get(path).json()["pending"] == 0)
    assert_citations_hold(up, asked(up, "How do I delete a document?"))


def test_an_index_that_was_removed_stays_away(up: Up) -> None:
    manifest = up.data / "manifests" / "handbook.yaml"
    kept = manifest.read_text()
    manifest.unlink()
    wait_for("the index to go", lambda: up.polaris("get", "handbook").code == 1)
    up.stop()
    up.start()
    assert not manifest.exists()
    manifest.write_text(kept)
    wait_for("the same answers", lambda: up.polaris("ask", "handbook", "What is POLARIS?").code == 0)


def test_killed_at_any_moment_of_its_first_start_it_starts_the_next_time(open_path: Path) -> None:
    killed = Up(open_path / "data")
    try:
        for seconds in (0.8, 1.6, 4):
            killed.begin()
            time.sleep(seconds)
            killed.kill()
        killed.start()
        assert_citations_hold(killed, asked(killed, "Como funcionam as citações?"))
    finally:
        killed.end()
