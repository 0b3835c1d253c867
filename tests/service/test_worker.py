"""Workers bring every generation level with the documents, whatever happens on the way."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any

import pytest

from parts import servers
from polaris import names
from polaris.sql import identifier
from polaris_service.documents import behind
from polaris_service.documents.behind import Failure, after_failure, embedded_text, outlast_the_embedder
from service.made import Index, Made, spec
from service.providers import POISON, Failing
from service.rig import Rig, until

pytestmark = [pytest.mark.postgres, pytest.mark.anyio]


@pytest.fixture
def provider() -> Failing:
    return Failing()


@pytest.fixture
async def rig(made: Made, provider: Failing) -> AsyncIterator[Rig]:
    async with Rig(made, provider) as running:
        yield running


def low_water(rig: Rig, index: Index) -> int:
    return int(rig.made.value("SELECT low_water FROM polaris.generations WHERE index_id = %s", index.number))


def clock(rig: Rig, index: Index) -> int:
    return int(rig.made.value(f"SELECT sequence FROM {index.table(names.CLOCK)}"))


def row(rig: Rig, index: Index, document: str) -> dict[str, Any]:
    columns = ("tries", "error", "failed_sequence", "sequence")
    found = rig.made.run(
        f"SELECT {', '.join('a.' + column for column in columns)} FROM {index.table('g1_applied')} a"
        f" JOIN {index.table(names.DOCUMENTS)} d ON d.id = a.document_id WHERE d.external_id = %s",
        document,
    )
    return dict(zip(columns, found[0], strict=True)) if found else {}


# --- level ---


async def test_all_that_was_put_becomes_searchable_and_the_low_water_rises(rig: Rig, index: Index) -> None:
    await rig.batch(index, [{"id": f"d{n}", "text": f"Sentence {n}. " * 12} for n in range(300)])
    async with rig.worker():
        await rig.level(index)
        await until(lambda: low_water(rig, index) == clock(rig, index))
    rig.made.check(index)
    told = (await rig.http.get(index.path)).json()
    assert (told["documents"], told["pending"], told["failed"]) == (300, 0, 0)
    assert told["chunks"] > 300


async def test_an_edit_embeds_only_what_is_new(rig: Rig, index: Index, provider: Failing) -> None:
    # As many tokens as a chunk holds, so that each is one.
    paragraphs = [" ".join(f"p{n}w{m}" for m in range(24)) + "." for n in range(10)]

    def own_texts() -> list[str]:
        # The database is shared: other tests leave work behind.
        return [text for text in provider.texts if re.search(r"p\dw|another", text)]

    await rig.put(index, "a", "\n\n".join(paragraphs))
    async with rig.worker():
        await rig.level(index)
        before = len(own_texts())
        paragraphs[4] = "Quite another paragraph."
        await rig.put(index, "a", "\n\n".join(paragraphs))
        await rig.level(index)
    assert "another" in own_texts()[-1]
    assert len(own_texts()) - before <= 2
    rig.made.check(index)
    assert (await rig.search(index, "quite another paragraph"))[0]["version"] == 2


async def test_chunks_are_embedded_with_the_title(rig: Rig, index: Index, provider: Failing) -> None:
    await rig.put(index, "a", "They sleep a lot.", title="Cats")
    async with rig.worker():
        await rig.level(index)
    assert [text for text in provider.texts if "sleep" in text] == ["Cats\nThey sleep a lot."]
    assert (await rig.search(index, "cats"))[0]["text"] == "They sleep a lot."


@pytest.mark.parametrize(
    ("title", "chunk", "expected"),
    [
        (None, "text", "text"),
        ("", "text", "text"),
        ("Title", "text", "Title\ntext"),
        ("Title", "# Title\n\ntext", "# Title\n\ntext"),
        ("Title", "Title\n=====\ntext", "Title\n=====\ntext"),
    ],
)
def test_a_title_that_stands_there_already_is_not_said_twice(
    title: str | None, chunk: str, expected: str
) -> None:
    assert embedded_text(title, chunk) == expected


async def test_what_is_embedded_is_written_when_no_switch_of_generations_is_under_way(
    rig: Rig, index: Index
) -> None:
    key = names.switch_lock(index.schema, 1)
    with closing(servers.connect(rig.made.database.dsn)) as switch, switch.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", (key,))
        await rig.put(index, "a", "They sleep a lot.")
        waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        async with rig.worker():
            await until(lambda: rig.made.value(waits) > 0)
            assert await rig.search(index, "sleep") == []
            cursor.execute("SELECT pg_advisory_unlock(%s)", (key,))
            await rig.level(index)
    assert [hit["document"] for hit in await rig.search(index, "sleep")] == ["a"]


async def test_a_title_longer_than_a_chunk_does_no_harm(rig: Rig, index: Index) -> None:
    await rig.put(index, "a", "Some text. " * 40, title="very " * 200)
    async with rig.worker():
        await rig.level(index)
    rig.made.check(index)


async def test_a_document_of_many_chunks_is_embedded_in_slices(
    rig: Rig, index: Index, provider: Failing
) -> None:
    await rig.put(index, "a", " ".join(f"word{n}" for n in range(3000)))
    async with rig.worker(batch_chunks=16):
        await rig.level(index)
    rig.made.check(index)
    assert len(provider.texts) > 64
    assert provider.asked >= len(provider.texts) / 16


async def test_the_newest_version_wins_over_one_that_is_being_embedded(
    rig: Rig, index: Index, provider: Failing
) -> None:
    provider.pause.clear()
    async with rig.worker():
        await rig.put(index, "a", "old text")
        await until(lambda: provider.asked > 0)
        await rig.put(index, "a", "new text")
        provider.pause.set()
        await rig.level(index)
    assert [hit["text"] for hit in await rig.search(index, "text")] == ["new text"]
    rig.made.check(index)


async def test_what_is_erased_while_it_is_embedded_does_not_come_back(
    rig: Rig, index: Index, provider: Failing
) -> None:
    provider.pause.clear()
    async with rig.worker():
        await rig.put(index, "a", "secret text")
        await until(lambda: provider.asked > 0)
        erasing = asyncio.create_task(rig.http.delete(f"{index.path}/documents/a", params={"erase": "true"}))
        await asyncio.sleep(0)
        provider.pause.set()
        assert (await erasing).status_code == 200
        await rig.level(index)
    assert rig.made.dump(index, "g1_chunks") == []
    rig.made.check(index)


async def test_two_workers_share_the_work_and_embed_nothing_twice(
    rig: Rig, index: Index, provider: Failing
) -> None:
    await rig.batch(index, [{"id": f"d{n}", "text": f"text number {n}"} for n in range(400)])
    async with rig.worker(batch_chunks=8), rig.worker(batch_chunks=8):
        await rig.level(index)
    rig.made.check(index)
    embedded = [text for text in provider.texts if text.startswith("text number")]
    assert sorted(embedded) == sorted(f"text number {n}" for n in range(400))


async def test_a_long_backlog_of_one_index_does_not_hold_up_another(
    rig: Rig, index: Index, provider: Failing
) -> None:
    other = rig.made.index("other-of-two")
    await rig.batch(index, [{"id": f"d{n}", "text": f"text {n}"} for n in range(400)])
    async with rig.worker(batch_chunks=4):
        await until(lambda: provider.asked > 4)
        await rig.put(other, "a", "text")
        await rig.level(other)
        assert rig.made.behind(index) > 0
        await rig.level(index)


async def test_a_table_that_is_being_indexed_is_left_alone(rig: Rig, index: Index) -> None:
    rig.made.set_state(index, "building")
    await rig.put(index, "a", "text")
    other = rig.made.index("beside-a-build")
    async with rig.worker():
        await rig.put(other, "a", "text")
        await rig.level(other)
        assert rig.made.behind(index) == 1
        rig.made.set_state(index, "serving")
        await rig.level(index)
    rig.made.check(index)


async def test_a_lock_of_a_build_is_not_waited_for(rig: Rig, index: Index) -> None:
    await rig.put(index, "a", "text")
    other = rig.made.index("beside-a-lock")
    async with rig.worker():
        with closing(servers.connect(rig.made.database.dsn)) as session, session.cursor() as cursor:
            cursor.execute("BEGIN")
            cursor.execute(f"LOCK TABLE {index.table('g1_chunks')} IN SHARE MODE")
            await rig.put(other, "a", "text")
            await rig.level(other)
            assert rig.made.behind(index) == 1
        await rig.level(index)
    assert row(rig, index, "a")["tries"] == 0


async def test_a_model_that_nobody_here_embeds_is_left_to_others(rig: Rig) -> None:
    index = rig.made.index(
        "foreign", spec(embedding={"model": "foreign", "dimension": 64}), namespace="elsewhere"
    )
    other = rig.made.index("own")
    await rig.put(index, "a", "text")
    async with rig.worker():
        await rig.put(other, "a", "text")
        await rig.level(other)
    assert rig.made.behind(index) == 1


# --- deletions ---


async def test_a_deletion_is_applied_while_the_embedder_is_away(rig: Rig, index: Index) -> None:
    workers = Failing()
    await rig.put(index, "a", "text to delete")
    await rig.put(index, "b", "text that stays")
    async with rig.worker(workers):
        await rig.level(index)
        workers.away = True
        await rig.put(index, "b", "text that nobody embeds now")
        await until(lambda: workers.asked > 3)
        assert (await rig.http.delete(f"{index.path}/documents/a")).status_code == 202

        async def is_gone() -> bool:
            return [hit["document"] for hit in await rig.search(index, "text")] == ["b"]

        await until(is_gone)
        assert rig.made.behind(index) == 1
        workers.away = False
        await rig.level(index)
    rig.made.check(index)


async def test_a_deletion_is_applied_where_nobody_embeds_the_model(rig: Rig) -> None:
    index = rig.made.index(
        "ready-only", spec(embedding={"provider": "another", "model": "hashed", "dimension": 64})
    )
    lines = [
        {"id": id_, "text": id_, "model": "hashed", "chunks": [{"span": [0, 1], "vector": [1.0] * 64}]}
        for id_ in ("a", "b")
    ]
    assert [line["status"] for line in await rig.batch(index, lines)] == [202] * 2
    assert (await rig.http.delete(f"{index.path}/documents/a")).status_code == 202
    async with rig.worker():
        await rig.level(index)
        await until(lambda: low_water(rig, index) == clock(rig, index))
    found = await rig.http.post(f"{index.path}/search", json={"vector": [1.0] * 64})
    assert [hit["document"] for hit in found.json()["hits"]] == ["b"]
    rig.made.check(index)


async def test_more_deletions_than_a_step_takes_are_applied_beside_what_is_embedded(
    rig: Rig, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(behind, "_DELETIONS", 3)
    await rig.batch(index, [{"id": f"d{n}", "text": f"text {n}"} for n in range(20)])
    async with rig.worker():
        await rig.level(index)
    # Some of them no worker has ever seen.
    await rig.batch(index, [{"id": f"d{n}", "text": "text"} for n in range(15, 25)])
    for n in range(0, 25, 2):
        assert (await rig.http.delete(f"{index.path}/documents/d{n}")).status_code == 202
    async with rig.worker(), rig.worker():
        await rig.level(index)
    assert len(rig.made.dump(index, "g1_chunks")) == 12
    rig.made.check(index)


# --- failures ---


async def test_a_poisoned_document_stops_no_other_and_is_given_up_on(
    rig: Rig, index: Index, provider: Failing
) -> None:
    provider.refuses_poison = True
    lines = [{"id": f"d{n}", "text": f"text {n}"} for n in range(30)]
    lines.insert(10, {"id": "bad", "text": f"some {POISON} here"})
    await rig.batch(index, lines)
    async with rig.worker(max_tries=2):
        await rig.level(index)
        bad = (await rig.get(index, "bad")).json()
        assert (bad["state"], bad["tries"], bad["error"]) == ("failed", 2, "400: I will not embed that")
        told = (await rig.http.get(index.path)).json()
        assert (told["failed"], told["pending"], told["chunks"]) == (1, 0, 30)
        listed = await rig.http.get(f"{index.path}/documents", params={"state": "failed"})
        assert [document["id"] for document in listed.json()["documents"]] == ["bad"]
        # What settles it is also what the low water goes by.
        await until(lambda: low_water(rig, index) == clock(rig, index))

        # The same PUT changes nothing; with retry it is tried anew.
        provider.refuses_poison = False
        assert (await rig.put(index, "bad", f"some {POISON} here")).status_code == 200
        again = await rig.http.put(
            f"{index.path}/documents/bad", json={"text": f"some {POISON} here"}, params={"retry": "true"}
        )
        assert (again.status_code, again.json()["version"]) == (202, 1)
        assert again.json()["sequence"] == 32
        await rig.level(index)
    got = (await rig.get(index, "bad")).json()
    assert got["state"] == "searchable"
    assert "error" not in got
    rig.made.check(index)


async def test_a_new_version_of_a_document_that_was_given_up_on_is_tried(
    rig: Rig, index: Index, provider: Failing
) -> None:
    provider.refuses_poison = True
    await rig.put(index, "a", POISON)
    async with rig.worker(max_tries=1):
        await rig.level(index)
        assert row(rig, index, "a")["failed_sequence"] == 1
        await rig.put(index, "a", "harmless")
        await rig.level(index)
    rig.made.check(index)


async def test_the_error_of_a_bug_tells_nothing_of_the_text(
    rig: Rig, index: Index, provider: Failing
) -> None:
    provider.breaks_on_poison = True
    await rig.put(index, "a", f"{POISON} of somebody")
    async with rig.worker(max_tries=1):
        await rig.level(index)
    assert row(rig, index, "a")["error"] == "failed unexpectedly: ZeroDivisionError"


async def test_an_embedder_that_is_away_is_nobodys_fault(rig: Rig, index: Index, provider: Failing) -> None:
    provider.away = True
    await rig.put(index, "a", "text")
    async with rig.worker(max_tries=1):
        await until(lambda: provider.asked > 2)
        assert row(rig, index, "a")["tries"] == 0
        assert (await rig.get(index, "a")).json()["state"] == "pending"
        provider.away = False
        await rig.level(index)
    rig.made.check(index)


async def test_an_embedder_that_refuses_everything_fails_no_document(
    rig: Rig, index: Index, provider: Failing
) -> None:
    provider.refuses_all = True
    await rig.batch(index, [{"id": f"d{n}", "text": f"text {n}"} for n in range(5)])
    async with rig.worker(max_tries=1):
        await until(lambda: provider.asked > 3)
        assert rig.made.behind(index) == 5
        provider.refuses_all = False
        # It waits ten seconds after the second time; a word from the operator or a new document wakes it.
        await rig.put(index, "other", "text")
        await rig.level(index)
    assert row(rig, index, "d0")["tries"] == 0
    rig.made.check(index)


@pytest.mark.parametrize(
    ("tries", "failed", "expected"),
    [
        (0, 0, Failure(1, 0, 1.0)),
        (1, 0, Failure(2, 0, 2.0)),
        (2, 0, Failure(3, 0, 4.0)),
        (3, 0, Failure(4, 0, 8.0)),
        (4, 0, Failure(5, 7, None)),
        # Given up on before, and changed since: it begins anew.
        (5, 3, Failure(1, 0, 1.0)),
    ],
)
def test_after_a_failure(tries: int, failed: int, expected: Failure) -> None:
    assert after_failure(tries, failed, sequence=7, max_tries=5, jitter=0.5) == expected


def test_the_wait_for_the_next_try_is_bounded() -> None:
    assert after_failure(50, 0, 7, 100, 1.0).wait == 90.0


# --- reports ---


async def test_a_claim_outlasts_what_the_server_allows_a_transaction(own: Made, provider: Failing) -> None:
    database = identifier(own.database.name)
    with closing(servers.connect(own.database.dsn)) as connection, connection.cursor() as cursor:
        for setting in ("idle_in_transaction_session_timeout", "transaction_timeout", "statement_timeout"):
            cursor.execute(f"ALTER DATABASE {database} SET {setting} = 400")
    made = own.index("kept")
    async with Rig(own, provider) as rig:
        await rig.batch(made, [{"id": "d", "text": "a text"}])
        provider.pause.clear()
        async with rig.worker():
            await until(lambda: provider.asked == 1)
            await asyncio.sleep(0.8)
            provider.pause.set()
            await rig.level(made)
        assert provider.asked == 1
        own.check(made)


async def test_the_locks_of_a_worker_that_vanished_go_within_a_minute(rig: Rig) -> None:
    names_ = ["tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count", "tcp_user_timeout"]

    async def settings(connection: Any) -> list[int]:
        shown = [await connection.fetchval("SELECT current_setting($1)", name) for name in names_]
        return [int(re.sub(r"\D", "", value)) for value in shown]

    async with rig.parts.database.connection("test") as connection:
        assert await connection.fetchval("SELECT inet_client_addr() IS NOT NULL")
        before = await settings(connection)
        async with connection.transaction():
            await outlast_the_embedder(connection)
            idle, interval, count, _ = await settings(connection)
            assert idle + interval * count <= 60
        assert await settings(connection) == before


async def test_a_worker_says_what_it_embeds_and_takes_it_back(own: Made, provider: Failing) -> None:
    def reported() -> list[tuple[Any, ...]]:
        return own.run("SELECT provider, model, revision, dimension FROM polaris.models")

    async with Rig(own, provider) as rig:
        async with rig.worker() as worker:
            await until(lambda: bool(reported()))
            assert reported() == [("default", "hashed", "1", 64)]
            assert worker.alive
        assert reported() == []


async def test_a_long_backlog_asks_for_a_load_and_takes_it_back(
    rig: Rig, index: Index, provider: Failing
) -> None:
    def requested() -> Any:
        return rig.made.value(
            "SELECT load_requested_at FROM polaris.generations WHERE index_id = %s", index.number
        )

    await rig.batch(index, [{"id": f"d{n}", "text": f"text {n}"} for n in range(150)])
    provider.pause.clear()
    async with rig.worker(bulk_documents=100):
        await until(lambda: requested() is not None)
        rig.made.set_state(index, "loading")
        provider.pause.set()
        await rig.level(index)
        await until(lambda: requested() is None)
    rig.made.check(index)
