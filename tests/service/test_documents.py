"""Documents over HTTP, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from service.made import Index
from service.rig import Rig

pytestmark = [pytest.mark.postgres, pytest.mark.anyio]


# --- put ---


async def test_a_put_is_accepted_with_its_version_and_sequence(rig: Rig, index: Index) -> None:
    response = await rig.put(index, "a", "Olá, mundo.", title="T", uri="http://x", attributes={"lang": "pt"})
    assert response.status_code == 202, response.text
    assert response.json() == {"id": "a", "version": 1, "sequence": 1}
    assert response.headers["etag"] == '"1"'


async def test_the_same_content_again_makes_no_new_version(rig: Rig, index: Index) -> None:
    first = await rig.put(index, "a", "text", attributes={"lang": "pt", "year": 1})
    again = await rig.put(index, "a", "text", attributes={"year": 1, "lang": "pt"})
    assert again.status_code == 200
    assert again.json() == first.json()
    changed = await rig.put(index, "a", "text", attributes={"year": 2, "lang": "pt"})
    assert changed.status_code == 202
    assert changed.json() == {"id": "a", "version": 2, "sequence": 2}


@pytest.mark.parametrize("field", ["title", "uri"])
async def test_a_change_of_any_field_is_a_new_version(rig: Rig, index: Index, field: str) -> None:
    await rig.put(index, "a", "text")
    assert (await rig.put(index, "a", "text", **{field: "x"})).json()["version"] == 2


async def test_what_was_put_is_what_is_got(rig: Rig, index: Index) -> None:
    attributes = {"lang": "pt", "year": 2026, "tags": ["a", 1, None, True], "free": 1.5, "nothing": None}
    text = " Olá!\r\n\t👩‍🔬 ção\u00a0\u200b\u0301 "
    await rig.put(index, "a", text, title="Título", uri="https://x/ç", attributes=attributes)
    got = (await rig.get(index, "a")).json()
    assert got["text"] == text
    assert (got["title"], got["uri"], got["attributes"]) == ("Título", "https://x/ç", attributes)
    assert (got["id"], got["version"], got["sequence"], got["state"]) == ("a", 1, 1, "pending")


async def test_many_at_once_give_each_its_own_version_in_a_row(rig: Rig, index: Index) -> None:
    answers = await asyncio.gather(*(rig.put(index, "a", f"text {n}") for n in range(20)))
    assert sorted(answer.json()["version"] for answer in answers) == list(range(1, 21))
    assert sorted(answer.json()["sequence"] for answer in answers) == list(range(1, 21))


async def test_the_same_content_many_times_at_once_is_one_version(rig: Rig, index: Index) -> None:
    answers = await asyncio.gather(*(rig.put(index, "a", "text") for _ in range(20)))
    assert {answer.json()["version"] for answer in answers} == {1}
    assert sorted(answer.status_code for answer in answers) == [200] * 19 + [202]


async def test_sequences_are_in_the_order_of_commits(rig: Rig, index: Index) -> None:
    """Whoever sees the clock at S sees every version up to S: low water marks and waits rely on it."""
    done = asyncio.Event()
    query = (
        f"SELECT (SELECT sequence FROM {index.table('clock')}),"
        f" (SELECT count(*) FROM {index.table('stored_versions')}),"
        f" (SELECT coalesce(max(sequence), 0) FROM {index.table('stored_versions')})"
    )

    async def writer(number: int) -> None:
        for turn in range(15):
            lines = [{"id": f"{number}/{turn}/{n}", "text": "text"} for n in range(number * 7)]
            await rig.batch(index, lines)
            await rig.put(index, f"shared/{turn}", f"by {number}")

    async def reader() -> None:
        while not done.is_set():
            [(clock, versions, last)] = await asyncio.to_thread(rig.made.run, query)
            assert clock == versions == last

    reading = asyncio.create_task(reader())
    await asyncio.gather(*(writer(number) for number in range(4)))
    done.set()
    await reading


# --- conditions ---


async def test_if_match_writes_only_over_that_version(rig: Rig, index: Index) -> None:
    path = f"{index.path}/documents/a"
    await rig.put(index, "a", "one")
    right = await rig.http.put(path, json={"text": "two"}, headers={"If-Match": '"1"'})
    assert (right.status_code, right.json()["version"]) == (202, 2)
    wrong = await rig.http.put(path, json={"text": "three"}, headers={"If-Match": '"1"'})
    assert (wrong.status_code, wrong.json()["code"]) == (412, "precondition-failed")
    assert "version 2" in wrong.json()["detail"]
    assert (await rig.get(index, "a")).json()["text"] == "two"


@pytest.mark.parametrize(
    ("headers", "there", "status"),
    [
        ({"If-Match": "1"}, True, 202),
        ({"If-Match": 'W/"1"'}, True, 202),
        ({"If-Match": '"7", "1"'}, True, 202),
        ({"If-Match": "*"}, True, 202),
        ({"If-Match": "*"}, False, 412),
        ({"If-Match": "1"}, False, 412),
        ({"If-Match": "0"}, False, 412),
        ({"If-None-Match": "*"}, False, 202),
        ({"If-None-Match": "*"}, True, 412),
        ({"If-Match": "one"}, True, 422),
        ({"If-None-Match": '"1"'}, True, 422),
    ],
)
async def test_conditions(rig: Rig, index: Index, headers: dict[str, str], there: bool, status: int) -> None:
    if there:
        await rig.put(index, "a", "one")
    response = await rig.http.put(f"{index.path}/documents/a", json={"text": "two"}, headers=headers)
    assert response.status_code == status, response.text
    if status == 412 and not there:
        assert (await rig.get(index, "a")).status_code == 404


async def test_of_many_that_saw_one_version_one_wins(rig: Rig, index: Index) -> None:
    await rig.put(index, "a", "one")
    path, headers = f"{index.path}/documents/a", {"If-Match": '"1"'}
    answers = await asyncio.gather(
        *(rig.http.put(path, json={"text": f"by {n}"}, headers=headers) for n in range(10))
    )
    assert sorted(answer.status_code for answer in answers) == [202] + [412] * 9


# --- ids ---


@pytest.mark.parametrize(
    ("path", "id_"),
    [
        ("plain", "plain"),
        ("a/b/c", "a/b/c"),
        ("a%2Fb", "a/b"),
        ("/begins", "/begins"),
        ("ends/", "ends/"),
        ("a%3Fb%23c", "a?b#c"),
        ("a%252Fb", "a%2Fb"),
        ("ol%C3%A1%20mundo", "olá mundo"),
        ("%F0%9F%91%A9%E2%80%8D%F0%9F%94%AC", "👩‍🔬"),
        ("search", "search"),
        ("x" * 1024, "x" * 1024),
    ],
)
async def test_an_id_may_hold_any_printable_characters(rig: Rig, index: Index, path: str, id_: str) -> None:
    assert (await rig.put(index, path, "text")).json()["id"] == id_
    got = await rig.http.get(f"{index.path}/documents/{path}")
    assert (got.status_code, got.json()["id"]) == (200, id_)
    assert (await rig.http.delete(f"{index.path}/documents/{path}")).status_code == 202


# --- get ---


async def test_older_versions_are_kept(rig: Rig, index: Index) -> None:
    await rig.put(index, "a", "one", title="First")
    await rig.put(index, "a", "two")
    old = (await rig.get(index, "a", version=1)).json()
    assert (old["text"], old["title"], old["version"], old["state"]) == ("one", "First", 1, "superseded")
    assert (await rig.get(index, "a", version=2)).json()["text"] == "two"


@pytest.mark.parametrize("version", [3, 2**31 - 1])
async def test_a_version_to_come_is_not_found(rig: Rig, index: Index, version: int) -> None:
    await rig.put(index, "a", "one")
    response = await rig.get(index, "a", version=version)
    assert (response.status_code, response.json()["code"]) == (404, "no-such-document")


@pytest.mark.parametrize("version", ["0", "-1", "x", str(2**31), "1.5", ""])
async def test_what_is_no_version_is_refused(rig: Rig, index: Index, version: str) -> None:
    await rig.put(index, "a", "one")
    response = await rig.get(index, "a", version=version)
    assert response.status_code == 422, response.text
    assert response.json()["errors"][0]["parameter"] == "version"


async def test_a_document_that_is_not_there_is_not_found(rig: Rig, index: Index) -> None:
    for response in (await rig.get(index, "a"), await rig.http.delete(f"{index.path}/documents/a")):
        assert (response.status_code, response.json()["code"]) == (404, "no-such-document")


# --- list ---


async def test_a_list_goes_by_pages_in_the_order_of_ids(rig: Rig, index: Index) -> None:
    ids = sorted([f"doc/{n:03}" for n in range(25)] + ["Zebra", "ábaco", "zebra"], key=str.encode)
    await rig.batch(index, [{"id": id_, "text": "t"} for id_ in reversed(ids)])
    await rig.http.delete(f"{index.path}/documents/doc/003")
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        page = (await rig.http.get(f"{index.path}/documents", params={"after": after, "limit": 10})).json()
        seen += [document["id"] for document in page["documents"]]
        assert len(page["documents"]) <= 10
        after = page["after"]
    assert seen == [id_ for id_ in ids if id_ != "doc/003"]


async def test_a_page_that_is_just_full_says_that_it_is_the_last(rig: Rig, index: Index) -> None:
    await rig.batch(index, [{"id": str(n), "text": "t"} for n in range(3)])
    page = (await rig.http.get(f"{index.path}/documents", params={"limit": 3})).json()
    assert (len(page["documents"]), page["after"]) == (3, None)


async def test_a_list_can_be_of_one_state(rig: Rig, index: Index) -> None:
    await rig.put(index, "a", "text")
    async with rig.worker():
        await rig.level(index)
    await rig.put(index, "b", "text")

    async def ids(state: str) -> list[str]:
        page = await rig.http.get(f"{index.path}/documents", params={"state": state})
        return [document["id"] for document in page.json()["documents"]]

    assert [await ids(state) for state in ("searchable", "pending", "failed")] == [["a"], ["b"], []]


@pytest.mark.parametrize(
    "params",
    [{"limit": "0"}, {"limit": "1001"}, {"limit": "x"}, {"state": "lost"}, {"after": "a\x00"}],
)
async def test_a_wrong_parameter_of_a_list_is_refused(rig: Rig, index: Index, params: dict[str, str]) -> None:
    response = await rig.http.get(f"{index.path}/documents", params=params)
    assert response.status_code == 422, response.text


# --- delete ---


async def test_what_is_deleted_is_gone_and_its_versions_stay(rig: Rig, index: Index) -> None:
    await rig.put(index, "a", "Gatos dormem.")
    async with rig.worker():
        await rig.level(index)
        response = await rig.http.delete(f"{index.path}/documents/a")
        assert (response.status_code, response.json()) == (202, {"id": "a", "version": 2, "sequence": 2})
        await rig.level(index)
    assert await rig.search(index, "gatos") == []
    got = await rig.get(index, "a")
    assert (got.status_code, got.json()["code"]) == (404, "no-such-document")
    assert (await rig.get(index, "a", version=1)).json()["text"] == "Gatos dormem."
    rig.made.check(index)


async def test_deleting_again_changes_nothing(rig: Rig, index: Index) -> None:
    await rig.put(index, "a", "text")
    first = await rig.http.delete(f"{index.path}/documents/a")
    again = await rig.http.delete(f"{index.path}/documents/a")
    assert (again.status_code, again.json()) == (200, first.json())


async def test_what_was_deleted_can_be_put_again(rig: Rig, index: Index) -> None:
    await rig.put(index, "a", "text")
    await rig.http.delete(f"{index.path}/documents/a")
    again = await rig.put(index, "a", "text")
    assert (again.status_code, again.json()["version"]) == (202, 3)
    assert (await rig.get(index, "a")).json()["text"] == "text"


async def test_a_delete_minds_if_match(rig: Rig, index: Index) -> None:
    await rig.put(index, "a", "text")
    path = f"{index.path}/documents/a"
    assert (await rig.http.delete(path, headers={"If-Match": "2"})).status_code == 412
    assert (await rig.http.delete(path, headers={"If-Match": "1"})).status_code == 202


# --- erase ---


async def test_what_is_erased_is_nowhere_at_once(rig: Rig, index: Index) -> None:
    await rig.put(index, "secret", "The launch code is swordfish.", title="Swordfish")
    await rig.put(index, "secret", "The launch code is still swordfish.")
    await rig.put(index, "other", "Nothing to see.")
    async with rig.worker():
        await rig.level(index)
    response = await rig.http.delete(f"{index.path}/documents/secret", params={"erase": "true"})
    assert (response.status_code, response.json()["version"]) == (200, 3)
    # No worker runs: it was done in the request.
    assert [hit["document"] for hit in await rig.search(index, "swordfish")] == ["other"]
    for table in ("stored_documents", "stored_versions", "g1_chunks", "g1_applied"):
        assert not [row for row in rig.made.dump(index, table) if "wordfish" in row[0]]
    for params in ({}, {"version": 1}, {"version": 2}):
        got = await rig.get(index, "secret", **params)
        assert (got.status_code, got.json()["code"]) == (410, "document-erased")
    rig.made.check(index)


async def test_what_was_deleted_can_still_be_erased(rig: Rig, index: Index) -> None:
    await rig.put(index, "a", "text")
    await rig.http.delete(f"{index.path}/documents/a")
    response = await rig.http.delete(f"{index.path}/documents/a", params={"erase": "true"})
    assert response.status_code == 200
    assert (await rig.get(index, "a", version=1)).status_code == 410
    again = await rig.http.delete(f"{index.path}/documents/a", params={"erase": "true"})
    assert again.json() == response.json()


async def test_erased_and_put_again_its_old_versions_stay_erased(rig: Rig, index: Index) -> None:
    await rig.put(index, "a", "old")
    await rig.http.delete(f"{index.path}/documents/a", params={"erase": "true"})
    again = await rig.put(index, "a", "new")
    assert again.json()["version"] == 3
    assert (await rig.get(index, "a")).json()["text"] == "new"
    assert (await rig.get(index, "a", version=1)).status_code == 410


async def test_erasing_waits_for_a_build_of_the_index(rig: Rig, index: Index) -> None:
    await rig.put(index, "a", "text")
    rig.made.set_state(index, "building")
    response = await rig.http.delete(f"{index.path}/documents/a", params={"erase": "true"})
    assert (response.status_code, response.json()["code"]) == (503, "index-not-ready")
    assert int(response.headers["retry-after"]) > 0
    assert (await rig.get(index, "a")).status_code == 200


# --- the index itself ---


async def test_an_index_tells_how_it_serves(rig: Rig, index: Index) -> None:
    await rig.put(index, "a", "One. Two.")
    async with rig.worker():
        await rig.level(index)
    await rig.put(index, "b", "Three.")
    told = (await rig.http.get(index.path)).json()
    assert {key: told[key] for key in ("documents", "chunks", "pending", "failed", "sequence")} == {
        "documents": 2,
        "chunks": 1,
        "pending": 1,
        "failed": 0,
        "sequence": 2,
    }
    assert (told["generation"], told["model"], told["state"]) == (1, "hashed", "serving")
    assert told["attributes"]["lang"] == "keyword"
    listed = (await rig.http.get("/v1/indexes")).json()["indexes"]
    assert index.name in {entry["name"] for entry in listed}


async def test_an_index_that_is_not_there_is_not_found(rig: Rig) -> None:
    for method, path in (
        ("GET", ""),
        ("PUT", "/documents/a"),
        ("GET", "/documents"),
        ("DELETE", "/documents/a"),
    ):
        response = await rig.http.request(method, f"/v1/indexes/team/none{path}", json={"text": "t"})
        assert (response.status_code, response.json()["code"]) == (404, "no-such-index"), path


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ("serving = NULL", 503, "index-not-ready"),
        ("spec = NULL", 503, "index-not-ready"),
        ("""spec = '{"from": "the future"}'""", 503, "index-not-ready"),
        ("state = 'released'", 404, "no-such-index"),
        ("state = 'deleting'", 404, "no-such-index"),
    ],
)
async def test_an_index_that_does_not_serve_says_so(
    rig: Rig, index: Index, change: str, status: int, code: str
) -> None:
    rig.made.run(f"UPDATE polaris.indexes SET {change} WHERE id = {index.number}")
    response = await rig.put(index, "a", "text")
    assert (response.status_code, response.json()["code"]) == (status, code)
    if status == 503:
        assert int(response.headers["retry-after"]) > 0


async def test_a_schema_that_went_away_is_an_index_that_is_not_ready(rig: Rig, index: Index) -> None:
    assert (await rig.put(index, "a", "text")).status_code == 202
    rig.made.run(f'DROP SCHEMA "{index.schema}" CASCADE')
    response = await rig.put(index, "b", "text")
    assert (response.status_code, response.json()["code"]) == (503, "index-not-ready")


# --- around it ---


async def test_a_request_keeps_its_id(rig: Rig) -> None:
    given = await rig.http.get("/livez", headers={"X-Request-Id": "abc-1"})
    assert given.headers["x-request-id"] == "abc-1"
    own = await rig.http.get("/livez", headers={"X-Request-Id": "no way\x7f"})
    assert len(own.headers["x-request-id"]) == 32


async def test_metrics_are_by_route_and_never_by_path(rig: Rig, index: Index) -> None:
    await rig.put(index, "somebody", "text")
    await rig.http.get("/no/such/route")
    text = (await rig.http.get("/metrics")).text
    route = "/v1/indexes/{namespace}/{name}/documents/{id:path}"
    assert f'polaris_http_requests_total{{method="PUT",route="{route}",status="202"}}' in text
    assert 'route="unmatched",status="404"' in text
    assert "somebody" not in text
    assert 'polaris_sql_seconds_count{kind="write"}' in text


async def test_the_description_names_every_route_with_its_problems(rig: Rig) -> None:
    described: dict[str, Any] = (await rig.http.get("/openapi.json")).json()
    put = described["paths"]["/v1/indexes/{namespace}/{name}/documents/{id}"]["put"]
    assert "application/problem+json" in put["responses"]["412"]["content"]
    schema = put["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"]["title"]["anyOf"][0]["maxLength"] == 1024
    assert schema["additionalProperties"] is False


async def test_nothing_of_a_document_is_logged(
    rig: Rig, index: Index, capsys: pytest.CaptureFixture[str]
) -> None:
    await rig.put(index, "id-of-somebody", "text-of-somebody", title="title-of-somebody")
    await rig.search(index, "question-of-somebody")
    async with rig.worker():
        await rig.level(index)
    out = "".join(capsys.readouterr())
    assert "access" in out
    assert "of-somebody" not in out
