"""Many documents in one request."""

from __future__ import annotations

import asyncio
import base64
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from parts import servers
from polaris_service.documents import batch, loading
from polaris_service.embed.provider import Kind
from service.made import Index
from service.rig import Rig, until

pytestmark = [pytest.mark.postgres, pytest.mark.anyio]


async def vectors(rig: Rig, texts: list[str]) -> Any:
    return await rig.provider.embed("hashed", texts, Kind.PASSAGE)


async def ready(rig: Rig, id_: str, *texts: str, **fields: Any) -> dict[str, Any]:
    """A line whose chunks are the texts."""
    text, spans = "", []
    for part in texts:
        spans.append([len(text), len(text) + len(part)])
        text += part + "\n"
    made = await vectors(rig, list(texts))
    chunks = [{"span": span, "vector": v.tolist()} for span, v in zip(spans, made, strict=True)]
    return {"id": id_, "text": text, "model": "hashed", "chunks": chunks, **fields}


async def test_each_line_has_a_result_in_order(rig: Rig, index: Index) -> None:
    results = await rig.batch(index, [{"id": f"d{n}", "text": f"text {n}"} for n in range(1200)])
    assert [result["id"] for result in results] == [f"d{n}" for n in range(1200)]
    assert [result["sequence"] for result in results] == list(range(1, 1201))
    assert {(result["version"], result["status"]) for result in results} == {(1, 202)}


async def test_a_wrong_line_is_an_error_line_and_the_others_go_on(rig: Rig, index: Index) -> None:
    results = await rig.batch(
        index,
        [
            {"id": "a", "text": "one"},
            b"{not json",
            b"",
            {"id": "b"},
            {"text": "no id"},
            {"id": "c", "text": "x", "attributes": {"year": "y"}},
            {"id": "d\x00", "text": "x"},
            {"id": "", "text": "x"},
            {"id": 7, "text": "x"},
            b"[]",
            {"id": "a", "text": "one"},
            {"id": "z", "text": "two"},
        ],
    )
    assert [result["status"] for result in results] == [202, 400, 422, 422, 422, 422, 422, 422, 422, 200, 202]
    assert [result.get("line") for result in results] == [None, 2, 4, 5, 6, 7, 8, 9, 10, None, None]
    assert results[4]["errors"] == [
        {"pointer": "/attributes/year", "detail": "must be a whole number of at most 64 bits"}
    ]
    assert results[4]["id"] == "c"
    assert (await rig.get(index, "z")).status_code == 200


async def test_what_is_wrong_with_very_many_lines_is_told_in_words_for_the_first_of_them(
    rig: Rig, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "DETAIL_BYTES", 10_000)
    wrong = {"text": "x", "attributes": {f"year{n}": "y" for n in range(100)} | {"year": "y"}}
    results = await rig.batch(index, [{"id": f"d{n}", **wrong} for n in range(500)])
    assert "errors" in results[0]
    assert results[-1] == {"line": 500, "status": 422, "code": "invalid-input", "id": "d499"}
    assert sum(len(str(result)) for result in results) < 10_000 + 500 * 100


async def test_the_last_line_needs_no_end(rig: Rig, index: Index) -> None:
    response = await rig.http.post(f"{index.path}/documents", content=b'{"id": "a", "text": "t"}')
    assert (response.status_code, response.headers["content-type"]) == (200, "application/x-ndjson")
    assert len(response.text.splitlines()) == 1


async def test_an_empty_batch_has_no_results(rig: Rig, index: Index) -> None:
    assert await rig.batch(index, []) == []


async def test_the_same_id_again_is_a_later_version(rig: Rig, index: Index) -> None:
    results = await rig.batch(index, [{"id": "a", "text": f"text {n}"} for n in range(3)])
    assert [result["version"] for result in results] == [1, 2, 3]
    assert (await rig.get(index, "a")).json()["text"] == "text 2"


async def test_a_batch_again_is_the_same_again(rig: Rig, index: Index) -> None:
    lines = [{"id": f"d{n}", "text": f"text {n}"} for n in range(10)]
    first = await rig.batch(index, lines)
    again = await rig.batch(index, lines)
    assert [result["sequence"] for result in again] == [result["sequence"] for result in first]
    assert {result["status"] for result in again} == {200}


async def test_a_line_beyond_its_limit_does_not_end_the_batch(made: Any, index: Index) -> None:
    async with Rig(made, max_body_bytes=2048) as small:
        results = await small.batch(
            index,
            [{"id": "a", "text": "x" * 5000}, {"id": "b", "text": "x"}, {"id": "c", "text": "y" * 2048}],
        )
    assert [(result["status"], result.get("code")) for result in results] == [
        (413, "too-large"),
        (202, None),
        (413, "too-large"),
    ]


async def test_a_batch_beyond_its_limit_ends_with_an_error_line(made: Any, index: Index) -> None:
    async with Rig(made, max_batch_lines=3) as small:
        results = await small.batch(index, [{"id": str(n), "text": "t"} for n in range(9)])
    assert [result["status"] for result in results] == [202, 202, 202, 413]


async def test_a_media_type_that_is_no_ndjson_is_refused(rig: Rig, index: Index) -> None:
    response = await rig.http.post(f"{index.path}/documents", json={"id": "a", "text": "t"})
    assert response.status_code == 415


# --- ready vectors ---


async def test_ready_vectors_are_searchable_with_their_result(rig: Rig, index: Index) -> None:
    before = rig.provider.embedded
    line = await ready(rig, "a", "Gatos dormem muito.", "Cães correm no parque.", attributes={"lang": "pt"})
    prepared = rig.provider.embedded
    [result] = await rig.batch(index, [line])
    assert (result["status"], result["sequence"]) == (202, 1)
    assert prepared - before == 2
    assert rig.provider.embedded == prepared
    hits = await rig.search(index, "cães", filter={"eq": ["lang", "pt"]})
    assert (hits[0]["text"], hits[0]["span"]) == ("Cães correm no parque.", [20, 42])
    assert (await rig.get(index, "a")).json()["state"] == "searchable"
    rig.made.check(index)


async def test_a_worker_leaves_ready_vectors_alone(rig: Rig, index: Index) -> None:
    await rig.batch(index, [await ready(rig, f"d{n}", f"text {n}") for n in range(20)])
    chunks = rig.made.dump(index, "g1_chunks")
    await rig.put(index, "other", "text")
    async with rig.worker():
        await rig.level(index)
    assert set(chunks) < set(rig.made.dump(index, "g1_chunks"))
    rig.made.check(index)


async def test_ready_vectors_replace_what_stood_there(rig: Rig, index: Index) -> None:
    await rig.batch(index, [await ready(rig, "a", "one", "two", "three")])
    await rig.batch(index, [await ready(rig, "a", "four")])
    assert [hit["text"] for hit in await rig.search(index, "one")] == ["four"]
    rig.made.check(index)


async def test_the_same_ready_vectors_again_make_no_new_version(rig: Rig, index: Index) -> None:
    line = await ready(rig, "a", "one", "two")
    assert [r["status"] for r in await rig.batch(index, [line, line])] == [202, 200]
    line["chunks"][0]["vector"][0] += 0.5
    assert [(r["status"], r["version"]) for r in await rig.batch(index, [line])] == [(202, 2)]


async def test_a_vector_may_be_base64(rig: Rig, index: Index) -> None:
    line = await ready(rig, "a", "one")
    raw = np.array(line["chunks"][0]["vector"], "<f4").tobytes()
    line["chunks"][0]["vector"] = base64.b64encode(raw).decode()
    other = await ready(rig, "b", "one")
    await rig.batch(index, [line, other])
    scores = [hit["score"] for hit in await rig.search(index, "one")]
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    ("change", "status", "pointer"),
    [
        ({"model": "another"}, 409, None),
        ({"model": None}, 422, "/model"),
        ({"chunks": None}, 422, "/chunks"),
        ({"chunks": []}, 422, "/chunks"),
        ({"chunks": {}}, 422, "/chunks"),
        ({"chunks": [{}]}, 422, "/chunks/0"),
        ({"chunks": [{"span": [0, 3], "vector": [0.1] * 64, "text": ""}]}, 422, "/chunks/0"),
        ({"chunks": [{"span": [0, 3], "vector": [0.1] * 63}]}, 422, "/chunks/0/vector"),
        ({"chunks": [{"span": [0, 3], "vector": [0.0] * 64}]}, 422, "/chunks/0/vector"),
        ({"chunks": [{"span": [0, 3], "vector": [1e9] * 64}]}, 422, "/chunks/0/vector"),
        ({"chunks": [{"span": [0, 3], "vector": ["1"] * 64}]}, 422, "/chunks/0/vector"),
        ({"chunks": [{"span": [0, 3], "vector": "!"}]}, 422, "/chunks/0/vector"),
        ({"chunks": [{"span": [0, 5], "vector": [0.1] * 64}]}, 422, "/chunks/0/span"),
        ({"chunks": [{"span": [3, 3], "vector": [0.1] * 64}]}, 422, "/chunks/0/span"),
        ({"chunks": [{"span": [-1, 3], "vector": [0.1] * 64}]}, 422, "/chunks/0/span"),
        ({"chunks": [{"span": [0, 1.5], "vector": [0.1] * 64}]}, 422, "/chunks/0/span"),
        ({"chunks": [{"span": [True, 3], "vector": [0.1] * 64}]}, 422, "/chunks/0/span"),
        ({"chunks": [{"span": "03", "vector": [0.1] * 64}]}, 422, "/chunks/0/span"),
    ],
)
async def test_wrong_ready_vectors_are_refused(
    rig: Rig, index: Index, change: dict[str, Any], status: int, pointer: str | None
) -> None:
    line = {"id": "a", "text": "text", "model": "hashed", "chunks": [{"span": [0, 4], "vector": [0.1] * 64}]}
    [result] = await rig.batch(index, [line | change])
    assert result["status"] == status, result
    if pointer:
        assert result["errors"][0]["pointer"] == pointer
    assert rig.made.dump(index, "stored_documents") == []


async def test_a_vector_that_holds_nan_is_no_json(rig: Rig, index: Index) -> None:
    line = b'{"id": "a", "text": "t", "model": "hashed", "chunks": [{"span": [0, 1], "vector": [NaN]}]}'
    [result] = await rig.batch(index, [line])
    assert (result["status"], result["code"]) == (400, "malformed")


async def test_ready_vectors_wait_for_a_build_of_the_index(rig: Rig, index: Index) -> None:
    rig.made.set_state(index, "building")
    results = await rig.batch(index, [await ready(rig, "a", "one")])
    assert [(result["status"], result["code"]) for result in results] == [(503, "index-not-ready")]
    assert [r["status"] for r in await rig.batch(index, [{"id": "a", "text": "one"}])] == [202]
    rig.made.set_state(index, "serving")
    rig.parts.indexes.forget()
    assert [r["status"] for r in await rig.batch(index, [await ready(rig, "b", "one")])] == [202]


async def test_ready_vectors_do_not_wait_behind_a_lock_of_a_build(rig: Rig, index: Index) -> None:
    """The operator's CREATE INDEX holds its lock before the catalog is read again."""
    line = await ready(rig, "a", "one")
    with closing(servers.connect(rig.made.database.dsn)) as session, session.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute(f"LOCK TABLE {index.table('g1_chunks')} IN SHARE MODE")
        [result] = await rig.batch(index, [line])
    assert (result["status"], result["code"]) == (503, "index-not-ready")


def requested(rig: Rig, index: Index) -> Any:
    return rig.made.value(
        "SELECT load_requested_at FROM polaris.generations WHERE index_id = %s", index.number
    )


async def let_load(rig: Rig, index: Index) -> None:
    """Do what the operator does once a load is asked for."""
    await until(lambda: requested(rig, index) is not None)
    rig.made.set_state(index, "loading")


async def test_a_bulk_load_of_ready_vectors_is_asked_for_and_taken_back(rig: Rig, index: Index) -> None:
    lines = [await ready(rig, f"d{n}", f"text {n}") for n in range(300)]

    results, _ = await asyncio.gather(rig.batch(index, lines), let_load(rig, index))
    assert {result["status"] for result in results} == {202}
    await until(lambda: requested(rig, index) is None)
    rig.made.check(index)


@pytest.mark.parametrize(
    ("lines", "seconds", "quiet"),
    [(9_999, 60.0, 3.0), (10_000, 1.0, 0.1), (100_000, 8.0, 0.8), (1_000_000, 600.0, 3.0)],
)
def test_a_large_request_is_taken_for_a_whole_load_for_a_tenth_of_its_time(
    lines: int, seconds: float, quiet: float
) -> None:
    assert loading.quiet_seconds(lines, seconds) == pytest.approx(quiet)


async def test_a_load_that_another_process_renews_is_not_taken_back(rig: Rig, index: Index) -> None:
    lines = [await ready(rig, f"d{n}", f"text {n}") for n in range(300)]
    await asyncio.gather(rig.batch(index, lines), let_load(rig, index))
    renewed = (
        "UPDATE polaris.generations SET load_requested_at = now() + interval '1 hour' WHERE index_id = %s"
    )
    rig.made.run(f"{renewed} RETURNING 1", index.number)
    await until(lambda: not rig.parts.loading.busy)
    assert requested(rig, index) is not None


async def test_of_two_who_make_the_same_documents_at_once_one_makes_the_second_version(
    rig: Rig, index: Index
) -> None:
    def lines(text: str) -> list[dict[str, Any]]:
        return [{"id": f"d{n}", "text": f"{text} {n}"} for n in range(200)]

    batches = await asyncio.gather(
        *(rig.batch(index, lines(text)) for text in ("one", "two", "two", "three"))
    )
    results = [result for batch in batches for result in batch]
    assert {result["status"] for result in results} <= {200, 202}
    written = [(result["id"], result["version"]) for result in results if result["status"] == 202]
    assert len(set(written)) == len(written)
    assert {id_ for id_, version in written if version == 1} == {f"d{n}" for n in range(200)}
    kept = rig.made.run(
        f"SELECT d.external_id, v.version FROM {index.table('stored_documents')} d"
        f" JOIN {index.table('stored_versions')} v ON v.document_id = d.id"
    )
    assert sorted(kept) == sorted(written)
