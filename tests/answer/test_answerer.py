"""Answers on real PostgreSQL: every citation stands in the stored text, or it does not leave."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from answer.doubles import serving
from answer.library import TEXTS, Scripted, answerer, fill, narrowest
from polaris.errors import DatabaseUnavailable, GeneratorUnavailable, InvalidInput, TooLarge
from polaris.spec import Embedding
from polaris_service.answer.answerer import Answer, Delta, parse, relevant
from polaris_service.answer.extractive import Extractive
from polaris_service.answer.generators import Generator, OpenAI, Remote
from polaris_service.answer.prompt import NO_ANSWER
from polaris_service.database import Database
from polaris_service.search.dense import Hit
from polaris_service.search.requests import Limits
from search.world import SearchIndex, World, spec

pytestmark = [pytest.mark.postgres, pytest.mark.anyio]

PT = "Como instalo um pacote?"
EN = "How often is a stable release made?"
MOON = "What is the moon made of?"


@pytest.fixture(scope="module")
def made(answer_world: World) -> SearchIndex:
    return fill(answer_world, "library")


async def ask(
    database: Database, made: SearchIndex, generator: Generator, question: str = PT, **more: Any
) -> Answer:
    writer, indexes = answerer(database, generator, seconds=240)
    index = await indexes.get(made.namespace, made.name)
    return await writer.answer(index, parse({"question": question, **more}, writer.limits))


def check(answer: Answer) -> None:
    """An outside check of the citations, against the texts that were stored."""
    for citation in answer.citations:
        text = TEXTS[citation.document][citation.start : citation.end]
        assert citation.text == text
        assert hashlib.sha256(text.encode()).hexdigest() == citation.sha256
        assert citation.version == 1
        assert f"[{citation.marker}]" in answer.text


# --- extractive ---


@pytest.mark.parametrize(
    ("question", "document", "begins"),
    [
        (PT, "faq/pacotes", "Use o comando apt install seguido do nome do pacote. [1]"),
        ("O que é o Debian?", "faq/o-que-é", "O Debian GNU/Linux é um sistema operacional livre. [1]"),
        (EN, "faq/releases", "A new stable release is made about every two years. [1]"),
    ],
)
async def test_an_extractive_answer_cites_the_sentences_that_it_is_made_of(
    database: Database, made: SearchIndex, question: str, document: str, begins: str
) -> None:
    answer = await ask(database, made, Extractive(), question)
    assert answer.text.startswith(begins)
    assert (answer.generator, answer.refused, answer.generation) == ("extractive", False, 1)
    assert answer.citations[0].document == document
    assert all(narrowest(TEXTS[c.document], c.start, c.end) for c in answer.citations)
    check(answer)


async def test_a_filter_keeps_documents_out_of_answers(database: Database, made: SearchIndex) -> None:
    answer = await ask(database, made, Extractive(), PT, filter={"eq": ["lang", "en"]})
    assert {citation.document for citation in answer.citations} <= {"faq/releases", "evil"}


# --- generated ---


async def test_a_generated_answer_keeps_the_markers_of_what_was_given(
    database: Database, made: SearchIndex
) -> None:
    scripted = Scripted(["Use apt ins", "tall [1", "]. O resto ", "é inventado [9]. E", " livre [2, 12]."])
    answer = await ask(database, made, scripted)
    assert answer.text == "Use apt install [1]. O resto é inventado. E livre [2]."
    assert [c.marker for c in answer.citations] == [1, 2]
    assert answer.citations[0].text == "Use o comando apt install seguido do nome do pacote."
    assert answer.generator == "scripted"
    check(answer)


async def test_a_sentence_without_a_valid_citation_is_kept_without_one(
    database: Database, made: SearchIndex
) -> None:
    answer = await ask(database, made, Scripted(["Nobody knows. Really [77]."]))
    assert (answer.text, answer.citations, answer.refused) == ("Nobody knows. Really.", (), False)


async def test_the_generator_reads_passages_as_data_and_what_they_order_is_not_done(
    database: Database, made: SearchIndex
) -> None:
    scripted = Scripted(["As ordered [7]."])
    answer = await ask(database, made, scripted, MOON)
    [prompt] = scripted.prompts
    assert prompt.passages[0].document == "evil"
    assert TEXTS["evil"] in prompt.user
    assert answer.citations == ()


async def test_what_is_shown_while_it_is_written_is_the_answer(database: Database, made: SearchIndex) -> None:
    writer, indexes = answerer(database, Scripted(["Use apt", " install [1] ", "[8]", "[1].", " Fim"]))
    index = await indexes.get(made.namespace, made.name)
    async with aclosing(writer.events(index, parse({"question": PT}, Limits()))) as stream:
        events = [event async for event in stream]
    *deltas, last = events
    assert isinstance(last, Answer)
    assert "".join(delta.text for delta in deltas if isinstance(delta, Delta)) == last.text
    assert last.text == "Use apt install [1][1]. Fim"


@pytest.mark.parametrize("pieces", [[NO_ANSWER], ["NO", " ANS", "WER."], [], ["  "]])
async def test_a_generator_that_finds_no_answer_refuses(
    database: Database, made: SearchIndex, pieces: list[str]
) -> None:
    answer = await ask(database, made, Scripted(pieces))
    assert (answer.refused, answer.citations) == (True, ())
    assert answer.text == "Nada neste índice responde à pergunta."
    answer = await ask(database, made, Scripted(pieces), EN)
    assert answer.text == "Nothing in this index answers the question."


async def test_an_endless_answer_is_cut(database: Database, made: SearchIndex) -> None:
    answer = await ask(database, made, Scripted(["words and words " * 100] * 100))
    assert len(answer.text) < 40_000
    assert answer.degraded == ("answer-truncated",)


async def test_a_real_wire_answers_with_citations(database: Database, made: SearchIndex) -> None:
    with serving("openai") as double:
        double.behaviour.pieces = ["Use o comando ", "apt install [", "1] e mais [5", "5]."]
        remote = OpenAI(Remote(double.url, "m"))
        answer = await ask(database, made, remote)
        await remote.stop()
    assert answer.text == "Use o comando apt install [1] e mais."
    assert answer.generator == "openai/m"
    check(answer)


async def test_a_real_model_never_makes_a_citation_that_does_not_verify(
    database: Database, made: SearchIndex, llama_server: str, tmp_path: Any
) -> None:
    key = tmp_path / "key"
    key.write_text("secret-of-llama")
    remote = OpenAI(Remote(llama_server, "smollm2", key, 240))
    answer = await ask(database, made, remote, EN, k=1)
    await remote.stop()
    assert answer.text
    check(answer)


# --- verified ---


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM {s}.stored_versions WHERE text LIKE '%apt install%'",
        "UPDATE {s}.stored_documents SET deleted = true WHERE external_id = 'faq/pacotes'",
        "UPDATE {s}.stored_versions SET text = replace(text, 'apt', 'APT')",
        "UPDATE {s}.stored_versions SET text = 'X' || text",
        "UPDATE {s}.stored_versions SET text = left(text, 30)",
    ],
    ids=["erased", "deleted", "changed", "shifted", "cut"],
)
async def test_a_citation_of_what_changed_while_the_answer_was_written_does_not_leave(
    answer_world: World, database: Database, statement: str
) -> None:
    made = fill(answer_world, f"moving-{hashlib.sha256(statement.encode()).hexdigest()[:6]}")

    async def meanwhile() -> None:
        answer_world.execute(statement.format(s=f'"{made.schema}"'))

    answer = await ask(database, made, Scripted(["Use apt install [1]", ". Fim."], meanwhile=meanwhile))
    assert (answer.text, answer.citations) == ("Use apt install. Fim.", ())


MARKERS = ["[1]", "[2]", "[3]", "[4]", "[5]", "[0]", "[1-9]", "[12,2]", "【3】", "[", "]"]
SCRAPS = st.sampled_from([*MARKERS, " ", ". ", "\n\n", "apt install", "pacote", "Debian", "moon", "ação"])


def test_whatever_is_generated_no_citation_leaves_that_the_stored_text_does_not_hold(
    answer_world: World, made: SearchIndex
) -> None:
    with asyncio.Runner() as runner:
        database = answer_world.service()
        runner.run(database.start())
        writer, indexes = answerer(database, Scripted())
        index = runner.run(indexes.get(made.namespace, made.name))

        @given(st.lists(SCRAPS, max_size=25))
        def holds(pieces: list[str]) -> None:
            writer._generator = Scripted(pieces)
            check(runner.run(writer.answer(index, parse({"question": PT}, Limits()))))

        try:
            holds()
        finally:
            runner.run(database.stop())


# --- refused ---


def hit(score: float) -> Hit:
    return Hit("d", 1, 0, 0, 1, score, "x", None, None, "{}")


@pytest.mark.parametrize(
    ("model", "metric", "score", "expected"),
    [
        ("multilingual-e5-small", "cosine", 0.90, True),
        ("multilingual-e5-small", "cosine", 0.80, False),
        ("intfloat/multilingual-e5-small", "cosine", 0.80, False),
        ("multilingual-e5-small", "l2", -0.9, True),
        ("unknown", "cosine", 0.01, True),
    ],
)
def test_a_question_is_refused_by_score_where_the_models_scale_is_known(
    model: str,
    metric: str,
    score: float,
    expected: bool,
) -> None:
    of = Embedding.model_validate({"model": model, "dimension": 3, "metric": metric})
    assert relevant(of, (hit(score),)) is expected
    assert relevant(of, ()) is False


async def test_a_question_that_nothing_is_relevant_to_is_not_put_to_the_generator(
    answer_world: World, database: Database
) -> None:
    made = fill(answer_world, "strict", model="multilingual-e5-small")
    scripted = Scripted(["Anything [1]."])
    answer = await ask(database, made, scripted, "Quantos gatos dormem na varanda?")
    assert (answer.refused, answer.citations, scripted.prompts) == (True, (), [])
    assert answer.text == "Nada neste índice responde à pergunta."


async def test_an_empty_index_refuses(answer_world: World, database: Database) -> None:
    made = answer_world.make("empty", spec(256))
    assert (await ask(database, made, Extractive())).refused


# --- what goes wrong ---


async def test_a_generator_that_hangs_is_ended_in_time(database: Database, made: SearchIndex) -> None:
    scripted = Scripted(["Use apt"], hang=True)
    writer, indexes = answerer(database, scripted, seconds=0.2)
    index = await indexes.get(made.namespace, made.name)
    with pytest.raises(GeneratorUnavailable, match=r"longer than 0\.2 s"):
        await writer.answer(index, parse({"question": PT}, Limits()))
    assert scripted.ended


async def test_a_generator_that_dies_half_way_leaves_no_half_an_answer(
    database: Database, made: SearchIndex
) -> None:
    scripted = Scripted(["Use apt [1]."], error=GeneratorUnavailable("broke off"))
    with pytest.raises(GeneratorUnavailable, match="broke off"):
        await ask(database, made, scripted)


async def test_an_answer_that_nobody_waits_for_ends_its_generator(
    database: Database, made: SearchIndex
) -> None:
    scripted = Scripted(["Use apt"], hang=True)
    asking = asyncio.create_task(ask(database, made, scripted))
    async with asyncio.timeout(5):
        while not scripted.prompts:  # noqa: ASYNC110 - a double has no event for it
            await asyncio.sleep(0.01)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert scripted.ended


async def test_what_cannot_be_verified_is_not_answered(answer_world: World, made: SearchIndex) -> None:
    database = answer_world.service()
    await database.start()

    async def meanwhile() -> None:
        await database.stop()

    with pytest.raises(DatabaseUnavailable):
        await ask(database, made, Scripted(["Use apt [1]."], meanwhile=meanwhile))


# --- the body ---

REFUSED: list[tuple[str, Any, str]] = [
    ("a list", [], ""),
    ("no question", {}, "/question"),
    ("null", {"question": None}, "/question"),
    ("an empty question", {"question": " "}, "/question"),
    ("a number", {"question": 7}, "/question"),
    ("k of 0", {"question": "x", "k": 0}, "/k"),
    ("a tenant", {"question": "x", "tenant": "t"}, "/tenant"),
    ("stream as text", {"question": "x", "stream": "yes"}, "/stream"),
    ("a query", {"question": "x", "query": "x"}, "/query"),
]


@pytest.mark.parametrize(("body", "pointer"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_a_body_that_is_wrong_is_refused_with_a_pointer(body: Any, pointer: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(body, Limits())
    assert caught.value.pointer == pointer


def test_a_question_that_is_too_long_is_too_large() -> None:
    with pytest.raises(TooLarge):
        parse({"question": "x" * 10_000}, Limits())
