"""With nobody asked who they are, a page in the user's browser must not get at what is here."""

from __future__ import annotations

import pytest

from service.made import Index, Made
from service.rig import Rig

pytestmark = [pytest.mark.postgres, pytest.mark.anyio]

OURS = [
    "localhost",
    "localhost:8080",
    "LocalHost:1",
    "127.0.0.1",
    "127.0.0.1:8080",
    "127.9.9.9",
    "[::1]:8080",
]
OTHERS = [
    "rebound.example",
    "rebound.example:8080",
    "localhost.rebound.example",
    "127.0.0.1.rebound.example:8080",
    "rebound.example@127.0.0.1",
    "10.0.0.7:8080",
    "0.0.0.0:8080",
    "[::2]",
    "",
]
PATHS = ["/livez", "/readyz", "/metrics", "/openapi.json", "/v1/indexes", "/v1/indexes/team/x/search", "/x"]


@pytest.mark.parametrize("host", OURS)
async def test_a_name_of_the_loopback_is_answered(rig: Rig, index: Index, host: str) -> None:
    assert (await rig.http.get("/livez", headers={"Host": host})).status_code == 200
    answer = await rig.http.post(f"{index.path}/search", json={"query": "x"}, headers={"Host": host})
    assert answer.status_code == 200


@pytest.mark.parametrize("host", OTHERS)
async def test_any_other_name_is_refused_on_every_path(rig: Rig, host: str) -> None:
    for path in PATHS:
        for method in ("GET", "POST"):
            answer = await rig.http.request(method, path, headers={"Host": host})
            problem = answer.json()
            assert (answer.status_code, problem["code"]) == (403, "forbidden"), (method, path)
            assert "only where it is asked as localhost" in problem["detail"]


async def test_a_request_with_two_names_is_refused(rig: Rig) -> None:
    twice = [("Host", "localhost"), ("Host", "localhost")]
    assert (await rig.http.get("/livez", headers=twice)).status_code == 403


@pytest.mark.parametrize(
    "origin", ["https://page.example", "null", "file://", "http://localhost.page.example"]
)
async def test_a_page_from_elsewhere_is_refused_and_changes_nothing(
    rig: Rig, index: Index, origin: str
) -> None:
    before = rig.made.dump(index, "stored_documents")
    # What a browser sends without asking first: a POST of text/plain.
    headers = {"Origin": origin, "Content-Type": "text/plain"}
    for path in ("documents", "search", "answer"):
        answer = await rig.http.post(f"{index.path}/{path}", content=b'{"id": "a"}', headers=headers)
        assert answer.status_code == 403, path
        assert "no web page of another machine" in answer.json()["detail"]
        assert "access-control-allow-origin" not in answer.headers
    assert rig.made.dump(index, "stored_documents") == before


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1:8080", "https://[::1]:8443"])
async def test_a_page_of_this_machine_may_ask(rig: Rig, index: Index, origin: str) -> None:
    answer = await rig.http.post(f"{index.path}/search", json={"query": "x"}, headers={"Origin": origin})
    assert answer.status_code == 200


async def test_where_callers_are_known_names_and_pages_do_not_matter(made: Made, tmp_path: object) -> None:
    async with Rig(made, auth="tokens", tokens_file=f"{tmp_path}/none") as rig:
        headers = {"Host": "polaris.rag.svc:8080", "Origin": "https://page.example"}
        assert (await rig.http.get("/livez", headers=headers)).status_code == 200
        assert (await rig.http.get("/v1/indexes", headers=headers)).status_code == 401
