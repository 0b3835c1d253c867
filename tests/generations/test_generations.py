"""Another model, type or chunking: a generation beside the one that serves, a switch, and the way back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from embed.doubles import HashedProvider, serving
from generations.models import Several
from generations.traffic import traffic
from mission.system import wait_for
from operations.site import (
    NAMESPACE,
    Site,
    database_manifest,
    execute,
    grant,
    index_manifest,
    site,
    uri,
)
from parts import servers
from polaris_cli.up.postgres import PostgresServer

pytestmark = pytest.mark.postgres

OLD = {"model": "old", "dimension": 384}
NEW = {"model": "new", "dimension": 256}
THIRD = {"model": "third", "dimension": 64}
KNOWN = {f"d{n}": f"Whoever asks for leave {n} in month {n % 12} gets {n * 7} days of it." for n in range(60)}


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with servers.running(servers.postgres18()) as running:
        grant(running)
        yield running


@pytest.fixture(scope="module")
def every_model() -> Several:
    return Several(HashedProvider(384, "old"), HashedProvider(256, "new"), HashedProvider(64, "third"))


@pytest.fixture
def models(every_model: Several) -> Iterator[Several]:
    yield every_model
    every_model.refused.clear()


@pytest.fixture(scope="module")
def system(
    server: PostgresServer, every_model: Several, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    with (
        serving(every_model) as url,
        site(tmp_path_factory.mktemp("site"), url, POLARIS_MAX_TRIES="2") as made,
    ):
        made.start()
        made.put(database_manifest(server.port))
        yield made


class Case:
    """One index, under a name of its own."""

    def __init__(self, system: Site, server: PostgresServer, name: str) -> None:
        self.system, self.server, self.name = system, server, name

    def apply(self, *, wait: bool = True, **spec: Any) -> None:
        """Write the manifest down; wait until its object is ready for it."""
        self.system.put(index_manifest(self.name, **spec), wait=False)
        if wait:
            self.serves(spec.get("embedding", OLD)["model"])

    def serves(self, model: str) -> None:
        """Wait until the object is Ready with this model."""

        def holds() -> bool:
            status = self.status
            ready = self.system.condition("PolarisIndex", self.name)
            return ready.get("status") == "True" and status["active"]["model"] == model

        wait_for(f"{self.name} to serve {model}", holds)

    @property
    def status(self) -> dict[str, Any]:
        """The object's."""
        return self.system.status("PolarisIndex", self.name)

    def sql(self, statement: str, *parameters: object) -> list[tuple[object, ...]]:
        """Run a statement in the index's schema, as the superuser."""
        (schema,) = execute(
            uri(self.server),
            "SELECT schema_name FROM polaris.indexes WHERE namespace = %s AND name = %s",
            NAMESPACE,
            self.name,
        )[0]
        return execute(uri(self.server), statement.replace("$schema", f'"{schema}"'), *parameters)


def test_a_change_of_model_loses_no_query_and_no_document_and_goes_back_in_a_moment(
    system: Site, server: PostgresServer, models: Several
) -> None:
    case = Case(system, server, "handbook")
    case.apply(embedding=OLD)
    system.load([{"id": name, "text": text} for name, text in KNOWN.items()])
    system.level()
    with traffic(system, "handbook", KNOWN) as seen:
        case.apply(embedding=NEW)
        wait_for("answers of the new generation", lambda: seen.generations[-1] == 2)
        assert case.status["previous"]["generation"] == 1
        before = models.passages["old"]
        case.apply(embedding=OLD)
        wait_for("answers of the old generation", lambda: seen.generations[-1] == 1)
    assert seen.wrong == []
    assert seen.generations == [1, 2, 1]
    # The way back embedded what was new, and nothing else.
    assert models.passages["old"] - before < len(KNOWN)
    system.level()
    for name, text in seen.present.items():
        assert name in {hit["document"] for hit in system.search(query=text, k=3)}
    shown = {row[0] for row in case.sql("SELECT DISTINCT document FROM $schema.chunks")}
    assert shown == {*KNOWN, *seen.present}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"embedding": OLD}, {"embedding": {**OLD, "type": "vector"}}),
        ({"embedding": {**OLD, "type": "vector"}}, {"embedding": OLD}),
    ],
    ids=["to vector", "to halfvec"],
)
def test_another_type_of_vectors_embeds_nothing_again(
    system: Site, server: PostgresServer, models: Several, before: dict[str, Any], after: dict[str, Any]
) -> None:
    case = Case(system, server, f"typed-{after['embedding'].get('type', 'halfvec')}")
    case.apply(**before)
    system.load([{"id": name, "text": text} for name, text in KNOWN.items()], case.name)
    system.level(case.name)
    embedded = models.passages["old"]
    system.put(index_manifest(case.name, **after), wait=False)
    wait_for("the switch", lambda: case.status["active"]["generation"] == 2)
    assert models.passages["old"] == embedded
    (kind,) = case.sql("SELECT DISTINCT pg_typeof(embedding)::text FROM $schema.chunks")[0]
    assert kind == after["embedding"].get("type", "halfvec")
    assert [hit["document"] for hit in system.search(case.name, query=KNOWN["d7"], k=1)] == ["d7"]


def test_other_chunks_are_cut_and_only_those_that_differ_are_embedded(
    system: Site, server: PostgresServer, models: Several
) -> None:
    case = Case(system, server, "chunked")
    case.apply(embedding=OLD, chunking={"maxTokens": 100, "overlapTokens": 0})
    long = " ".join(f"Sentence {n} of a long document is about subject {n * n}." for n in range(60))
    system.load(
        [*({"id": name, "text": text} for name, text in KNOWN.items()), {"id": "long", "text": long}],
        case.name,
    )
    system.level(case.name)
    embedded = models.passages["old"]
    system.put(
        index_manifest(case.name, embedding=OLD, chunking={"maxTokens": 50, "overlapTokens": 0}), wait=False
    )
    wait_for("the switch", lambda: case.status["active"]["generation"] == 2)
    (longest,) = case.sql("SELECT count(*) FROM $schema.chunks WHERE document = 'long'")[0]
    assert models.passages["old"] - embedded == longest


def test_a_generation_that_lacks_a_document_does_not_serve_until_it_has_it(
    system: Site, server: PostgresServer, models: Several
) -> None:
    case = Case(system, server, "gated")
    case.apply(embedding=OLD)
    system.load(
        [*({"id": name, "text": text} for name, text in KNOWN.items()), {"id": "odd", "text": "An oddity."}],
        case.name,
    )
    system.level(case.name)
    models.refused["new"] = "oddity"
    case.apply(embedding=NEW, wait=False)
    message = system.wait("PolarisIndex", case.name, "GateFailed")
    assert f"of {len(KNOWN) + 1} documents 1 are missing" in message
    assert system.condition("PolarisIndex", case.name, "Serving")["status"] == "True"
    assert case.status["active"]["generation"] == 1
    assert system.search(case.name, query="An oddity.", k=1)[0]["document"] == "odd"
    assert system.http.delete(f"{system.path(case.name)}/documents/odd").is_success
    case.serves("new")


def test_a_change_of_mind_on_the_way_ends_where_the_last_spec_says(
    system: Site, server: PostgresServer, models: Several
) -> None:
    case = Case(system, server, "minds")
    case.apply(embedding=OLD)
    system.load([{"id": name, "text": text} for name, text in KNOWN.items()], case.name)
    system.level(case.name)
    models.refused["new"] = "leave"
    case.apply(embedding=NEW, wait=False)
    system.wait("PolarisIndex", case.name, "Filling")
    case.apply(embedding=THIRD)
    assert case.status["active"]["generation"] == 3
    wait_for(
        "the second to be gone", lambda: case.sql("SELECT to_regclass('$schema.g2_chunks')") == [(None,)]
    )
    assert system.search(case.name, query=KNOWN["d7"], k=1)[0]["document"] == "d7"
