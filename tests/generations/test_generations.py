"""Another model, type or chunking: a generation beside the one that serves, a switch, and the way back."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import psycopg2.errors
import pytest

from embed.doubles import HashedProvider, serving
from generations.models import Remembered, Several, Universal
from generations.traffic import traffic
from generations.waits import SETTINGS, Waits
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
from polaris_cli.up.postgres import LocalPostgres, PostgresServer
from polaris_service.embed.local import MODEL, LocalProvider, default_cache
from soak import SOAKING, times

pytestmark = [pytest.mark.postgres, pytest.mark.soak]

REAL: dict[str, Any] = {"model": "multilingual-e5-small", "dimension": 384}
OTHER_REAL: dict[str, Any] = {"model": "universal-sentence-encoder", "dimension": 512}
OLD = {"model": "old", "dimension": 384}
NEW = {"model": "new", "dimension": 256}
THIRD = {"model": "third", "dimension": 64}
# The first users' language, in which both real models are at home.
SUBJECTS = """
férias reembolso viagem hotel táxi almoço computador celular crachá senha
uniforme capacete salário bônus contrato demissão aviso atestado vacina creche
escola bolsa idioma plano dentista óculos farmácia academia estacionamento bicicleta
ônibus combustível pedágio multa seguro acidente incêndio extintor alarme portaria
visita reunião auditório impressora papel caneta cadeira mesa monitor teclado
rede servidor arquivo backup nota fatura imposto recibo banco cheque
""".split()  # noqa: SIM905  (sixty lines for sixty words)
LEAVE = {
    f"d{n}": f"O pedido de {subject} é feito ao setor {n % 7} com {n + 2} dias de antecedência."
    for n, subject in enumerate(SUBJECTS)
}
KNOWN = {f"d{n}": f"Whoever asks for leave {n} in month {n % 12} gets {n * 7} days of it." for n in range(60)}


@pytest.fixture(scope="module")
def server() -> Iterator[LocalPostgres]:
    with servers.running(servers.postgres18()) as running:
        grant(running)
        for setting in SETTINGS:
            execute(uri(running, "postgres"), f"ALTER SYSTEM SET {setting}")
        execute(uri(running, "postgres"), "SELECT pg_reload_conf()")
        yield running


@pytest.fixture(scope="module")
def every_model() -> Several:
    real = Remembered(LocalProvider(default_cache(os.environ), threads=1), MODEL)
    return Several(
        HashedProvider(384, "old"),
        HashedProvider(256, "new"),
        HashedProvider(64, "third"),
        real,
        Remembered(Universal(), Universal.offered),
    )


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


# Each document that a generation shows: whether it is the present version, with all of its chunks.
_WHOLE = """
SELECT d.external_id, bool_and(c.version = d.version), count(*) = max(a.chunks)
FROM $schema.$g_chunks c JOIN $schema.stored_documents d ON d.id = c.document_id
JOIN $schema.$g_applied a ON a.document_id = d.id WHERE NOT d.deleted GROUP BY 1
UNION ALL
SELECT d.external_id || ' was deleted', false, false
FROM $schema.$g_chunks c JOIN $schema.stored_documents d ON d.id = c.document_id WHERE d.deleted
"""


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

        self.waits(f"{self.name} to serve {model}", holds)

    def waits(self, what: str, holds: Callable[[], bool]) -> None:
        """Wait until something holds; AssertionError with what the object says meanwhile."""
        try:
            wait_for(what, holds)
        except AssertionError as error:
            raise AssertionError(f"{error}; it says {self.status}") from None

    def leaves(self, generation: int) -> None:
        """Wait until another generation serves."""
        wait_for(
            f"{self.name} to leave {generation}", lambda: self.status["active"]["generation"] != generation
        )

    @property
    def status(self) -> dict[str, Any]:
        """The object's."""
        return self.system.status("PolarisIndex", self.name)

    def holds(self, documents: Mapping[str, str]) -> None:
        """Wait until all generations are level; each must have these documents, whole, and no more."""
        for number in self._generations():
            try:
                self._level(number)
                rows = self.sql(_WHOLE.replace("$g", f"g{number}"))
            except psycopg2.errors.UndefinedTable:
                assert number not in self._generations()  # Its time was over.
                continue
            assert {name for name, *_ in rows} == {*documents}, number
            assert [row for row in rows if row[1:] != (True, True)] == [], number
        assert self.sql("SELECT DISTINCT generation FROM $schema.chunks") == [
            (self.status["active"]["generation"],)
        ]

    def _generations(self) -> list[object]:
        rows = execute(
            uri(self.server),
            "SELECT g.number FROM polaris.generations g JOIN polaris.indexes i ON i.id = g.index_id"
            " WHERE (i.namespace, i.name) = (%s, %s)",
            NAMESPACE,
            self.name,
        )
        return [number for (number,) in rows]

    def _level(self, number: object) -> None:
        behind = (
            f"SELECT count(*) FROM $schema.stored_documents d LEFT JOIN $schema.g{number}_applied a"
            " ON a.document_id = d.id WHERE d.sequence > coalesce(a.sequence, 0)"
        )
        wait_for(f"generation {number} to be level", lambda: self.sql(behind) == [(0,)])

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
    system: Site, server: LocalPostgres, models: Several
) -> None:
    case = Case(system, server, "handbook")
    case.apply(embedding=REAL)
    system.load([{"id": name, "text": text} for name, text in LEAVE.items()])
    system.level()
    rounds, waits, back = times(1, 20), Waits(server.log_file), list[float]()
    started = time.monotonic()
    with traffic(system, "handbook", LEAVE, askers=times(1, 6), asks_a_second=times(50, 200)) as seen:
        for number in range(2, 2 + rounds):
            # Cut at another length it is a generation that is not there yet, round after round.
            case.apply(embedding=OTHER_REAL, chunking={"maxTokens": 100 + number, "overlapTokens": 0})
            case.waits("answers of the new generation", partial(seen.all_see, number))
            assert case.status["previous"]["generation"] == 1
            before, begun = models.passages[MODEL.model], time.monotonic()
            case.apply(embedding=REAL, wait=False)
            case.waits("answers of the old generation", partial(seen.all_see, 1))
            back.append(time.monotonic() - begun)
            # The way back embedded what was new, and nothing else.
            assert models.passages[MODEL.model] - before < len(LEAVE)
            case.serves(REAL["model"])
    assert seen.wrong == []
    expected = [1, *(number for new in range(2, 2 + rounds) for number in (new, 1))]
    assert all(told == expected for told in seen.generations)
    if SOAKING:
        pace = len(seen.seconds) / (time.monotonic() - started)
        print(f"{rounds} switches and as many back, {len(seen.seconds)} questions, {pace:.0f}/s")
        print(f"back in {max(back):.2f} s at most, waits for locks: {waits.seen()}")
        assert max(back) < 5.0
        assert all(milliseconds < 50 for milliseconds, *_ in waits.seen())
    system.level()
    for name, text in seen.present.items():
        assert name in {hit["document"] for hit in system.search(query=text, k=3)}
    case.holds({**LEAVE, **seen.present})


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
    system.load([{"id": name, "text": text} for name, text in KNOWN.items()], case.name)
    models.refused["new"] = "oddity"
    for number in range(times(1, 20)):
        system.load([{"id": "odd", "text": f"An oddity, {number}."}], case.name)
        system.level(case.name)
        before = case.status["active"]["generation"]
        case.apply(embedding=NEW, chunking={"maxTokens": 100 + number, "overlapTokens": 0}, wait=False)
        message = system.wait("PolarisIndex", case.name, "GateFailed")
        assert f"of {len(KNOWN) + 1} documents 1 are missing" in message
        assert system.condition("PolarisIndex", case.name, "Serving")["status"] == "True"
        assert case.status["active"]["generation"] == before
        assert system.search(case.name, query="An oddity.", k=1)[0]["document"] == "odd"
        assert system.http.delete(f"{system.path(case.name)}/documents/odd").is_success
        case.serves("new")
        case.apply(embedding=OLD)


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


SPECS: list[dict[str, Any]] = [
    {"embedding": OLD},
    {"embedding": NEW},
    {"embedding": OLD, "chunking": {"maxTokens": 40, "overlapTokens": 0}},
    {"embedding": {**OLD, "type": "vector"}},
]


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("program", ["operator", "worker", "serve"])
def test_a_program_that_is_killed_on_the_way_costs_time_and_nothing_else(
    system: Site, server: PostgresServer, program: str
) -> None:
    case = Case(system, server, f"killed-{program}")
    case.apply(**SPECS[0])
    system.load([{"id": name, "text": text} for name, text in KNOWN.items()], case.name)
    system.level(case.name)
    chosen = random.Random(program)  # noqa: S311
    for number in range(1, 1 + times(2, 30)):
        before = case.status["active"]["generation"]
        system.put(index_manifest(case.name, **SPECS[number % len(SPECS)]), wait=False)
        time.sleep(chosen.uniform(0.2, 2.0))
        system.stop(program)
        system.start(program)
        case.leaves(before)
        case.serves(SPECS[number % len(SPECS)]["embedding"]["model"])
        case.holds(KNOWN)


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("seed", range(times(1, 20)))
def test_whatever_comes_between_every_generation_ends_with_the_documents_that_are_there(
    system: Site, server: PostgresServer, seed: int
) -> None:
    case = Case(system, server, f"mixed-{seed}")
    case.apply(**SPECS[0])
    chosen = random.Random(seed)  # noqa: S311
    documents: dict[str, str] = {}
    for step in range(40):
        if chosen.random() < 0.15:
            system.put(index_manifest(case.name, **chosen.choice(SPECS)), wait=False)
        name = f"d{chosen.randrange(12)}"
        if name in documents and chosen.random() < 0.3:
            assert system.http.delete(f"{system.path(case.name)}/documents/{name}").is_success
            del documents[name]
        else:
            documents[name] = f"Version {step} of {name} says {chosen.random()}. " * chosen.randrange(1, 9)
            body = {"text": documents[name]}
            assert system.http.put(f"{system.path(case.name)}/documents/{name}", json=body).is_success
        time.sleep(chosen.choice([0.0, 0.02, 0.3]))
    case.apply(**SPECS[1])
    case.holds(documents)
