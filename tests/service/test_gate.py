"""Who asks, and may they: tokens of a file, the cache of answers, and what is written down."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from polaris.errors import InvalidInput, Unauthenticated, Unavailable
from polaris_service.gate import Access
from polaris_service.gate import tokens as module
from polaris_service.gate.cache import Answers
from polaris_service.gate.pipeline import bearer
from polaris_service.gate.tokens import TokensPolicy, parse_tokens
from service.made import Index, Made
from service.rig import Rig

pytestmark = pytest.mark.anyio


# --- the cache ---


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_an_answer_is_asked_for_once_and_again_when_it_is_old() -> None:
    clock, asked = Clock(), 0

    async def ask() -> int:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return asked

    answers: Answers[int] = Answers(10, lambda _: 5.0, clock)
    assert await asyncio.gather(*(answers.get("a", ask) for _ in range(20))) == [1] * 20
    clock.now = 4.9
    assert await answers.get("a", ask) == 1
    clock.now = 5.0
    assert await answers.get("a", ask) == 2


async def test_a_failure_is_not_remembered_and_reaches_all_who_asked() -> None:
    async def fail() -> int:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    async def succeed() -> int:
        return 1

    answers: Answers[int] = Answers(10, lambda _: 5.0)
    results = await asyncio.gather(*(answers.get("a", fail) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [ZeroDivisionError] * 3
    assert await answers.get("a", succeed) == 1


async def test_the_cache_is_bounded_and_forgets_the_oldest() -> None:
    answers: Answers[int] = Answers(3, lambda _: 5.0)
    for number in range(10):

        async def ask(number: int = number) -> int:
            return number

        await answers.get(number, ask)
    assert len(answers) == 3


async def test_one_who_gives_up_does_not_take_the_answer_from_the_others() -> None:
    go = asyncio.Event()

    async def ask() -> int:
        await go.wait()
        return 7

    answers: Answers[int] = Answers(3, lambda _: 5.0)
    first, second = (asyncio.create_task(answers.get("a", ask)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    go.set()
    assert await second == 7


# --- the header ---


@pytest.mark.parametrize(
    ("header", "token"), [(None, None), ("Bearer abc", "abc"), ("bearer  abc ", "abc"), ("BEARER a.b", "a.b")]
)
def test_a_token_is_read_from_its_header(header: str | None, token: str | None) -> None:
    assert bearer(header) == token


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic abc", "abc"])
def test_another_header_is_no_token(header: str) -> None:
    with pytest.raises(Unauthenticated, match="Bearer TOKEN"):
        bearer(header)


# --- the file of tokens ---


def entry(of: str = "t", **fields: Any) -> dict[str, Any]:
    digest = hashlib.sha256(of.encode()).hexdigest()
    return {"name": "me", "sha256": digest, "verbs": ["query"], "indexes": ["team/*"]} | fields


def text(*entries: dict[str, Any]) -> str:
    return json.dumps({"tokens": list(entries)})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not YAML"),
        ("[]", "the file of tokens: "),
        ("tokens: {}", "/tokens"),
        (text(entry(sha256="abc")), "/tokens/0/sha256"),
        (text(entry(verbs=[])), "/tokens/0/verbs"),
        (text(entry(verbs=["read"])), "'read' is none of"),
        (text(entry(), entry(indexes=["team"])), "/tokens/1/indexes"),
        (text(entry(indexes=[])), "/tokens/0/indexes"),
        (text(entry(token="in the clear")), "/tokens/0/token"),
        (text(entry(name="")), "/tokens/0/name"),
    ],
)
def test_a_wrong_file_names_what_is_wrong(content: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        parse_tokens(content)


def test_an_empty_file_has_no_tokens() -> None:
    assert parse_tokens("") == {}


@pytest.mark.parametrize(
    ("verbs", "indexes", "access", "index", "allowed"),
    [
        (["query"], ["team/a"], Access.QUERY, ("team", "a"), True),
        (["query"], ["team/a"], Access.QUERY, ("team", "b"), False),
        (["query"], ["team/a"], Access.QUERY, ("other", "a"), False),
        (["query"], ["team/*"], Access.QUERY, ("team", "b"), True),
        (["query"], ["*/*"], Access.QUERY, ("other", "b"), True),
        (["query"], ["team/a*"], Access.QUERY, ("team", "abc"), True),
        (["query"], ["*/*"], Access.READ, ("team", "a"), False),
        (["documents"], ["*/*"], Access.READ, ("team", "a"), True),
        (["documents"], ["*/*"], Access.DELETE, ("team", "a"), True),
        (["documents:get"], ["*/*"], Access.READ, ("team", "a"), True),
        (["documents:get"], ["*/*"], Access.WRITE, ("team", "a"), False),
        (["documents:create"], ["*/*"], Access.WRITE, ("team", "a"), True),
        (["*"], ["*/*"], Access.PLAN, ("team", "a"), True),
        # An empty name stands for all, and one index is not all of them.
        (["query"], ["*/*"], Access.QUERY, ("", ""), True),
        (["query"], ["team/*"], Access.QUERY, ("team", ""), True),
        (["query"], ["team/*"], Access.QUERY, ("", ""), False),
        (["query"], ["team/a*"], Access.QUERY, ("team", ""), False),
    ],
)
def test_what_an_entry_allows(
    verbs: list[str], indexes: list[str], access: Access, index: tuple[str, str], allowed: bool
) -> None:
    [token] = parse_tokens(text(entry(verbs=verbs, indexes=indexes))).values()
    assert token.allows(access, *index) is allowed


async def test_the_file_is_followed_and_a_wrong_one_leaves_what_was_in_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.0)
    file = tmp_path / "tokens.yaml"
    policy = TokensPolicy(file)
    await policy.start()
    with pytest.raises(Exception, match="not there, or is wrong"):
        await policy.who("t")
    file.write_text(text(entry("t")))
    caller = await policy.who("t")
    assert caller.name == "me"
    assert await policy.may(caller, Access.QUERY, "team", "a")
    file.write_text("broken: [")
    assert (await policy.who("t")).name == "me"
    file.write_text(text(entry("another, longer")))
    with pytest.raises(Unauthenticated):
        await policy.who("t")
    # Who was let in before is not any more.
    assert not await policy.may(caller, Access.QUERY, "team", "a")


async def test_who_removes_the_file_locks_everybody_out_until_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.0)
    file, aside = tmp_path / "tokens.yaml", tmp_path / "aside.yaml"
    file.write_text(text(entry("t")))
    policy = TokensPolicy(file)
    await policy.start()
    caller = await policy.who("t")
    file.rename(aside)
    with pytest.raises(Unavailable, match="not there, or is wrong"):
        await policy.who("t")
    with pytest.raises(Unavailable):
        await policy.may(caller, Access.QUERY, "team", "a")
    # The very same file, with the time that it had.
    aside.rename(file)
    assert (await policy.who("t")).name == "me"


# --- over HTTP ---


@pytest.fixture
def tokens_file(tmp_path: Path) -> Path:
    file = tmp_path / "tokens.yaml"
    file.write_text(
        text(
            entry("reader", name="reader", verbs=["query", "documents:get"]),
            entry("writer", name="writer", verbs=["documents"]),
            entry("elsewhere", name="elsewhere", verbs=["*"], indexes=["other/*"]),
        )
    )
    return file


@pytest.mark.postgres
async def test_each_route_asks_for_its_verb(made: Made, index: Index, tokens_file: Path) -> None:
    routes = [
        ("GET", index.path, "query"),
        ("POST", f"{index.path}/search", "query"),
        ("PUT", f"{index.path}/documents/a", "create"),
        ("POST", f"{index.path}/documents", "create"),
        ("GET", f"{index.path}/documents/a", "read"),
        ("GET", f"{index.path}/documents", "read"),
        ("DELETE", f"{index.path}/documents/b", "delete"),
    ]
    may = {"reader": {"query", "read"}, "writer": {"create", "read", "delete"}, "elsewhere": set()}
    async with Rig(made, auth="tokens", tokens_file=str(tokens_file)) as rig:
        for token, verbs in may.items():
            for method, path, verb in routes:
                response = await rig.http.request(
                    method,
                    path,
                    content=b'{"text": "t"}',
                    headers={"Authorization": f"Bearer {token}"},
                )
                assert (response.status_code == 403) is (verb not in verbs), (token, method, path)
                if response.status_code == 403:
                    assert f"{token} lacks the verb" in response.json()["detail"]
                    assert index.name in response.json()["detail"]


@pytest.mark.postgres
async def test_a_stranger_learns_nothing_but_how_to_ask(made: Made, index: Index, tokens_file: Path) -> None:
    async with Rig(made, auth="tokens", tokens_file=str(tokens_file)) as rig:
        for path in (index.path, "/v1/indexes/team/none", "/v1/indexes"):
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic x"}):
                response = await rig.http.get(path, headers=headers)
                assert (response.status_code, response.json()["code"]) == (401, "unauthenticated")
                assert response.headers["www-authenticate"].startswith("Bearer")
        # An index that is not there looks like one that may not be used.
        headers = {"Authorization": "Bearer elsewhere"}
        answers = [
            await rig.http.get(path, headers=headers) for path in (index.path, "/v1/indexes/team/none")
        ]
        assert [answer.status_code for answer in answers] == [403, 403]
        for path in ("/livez", "/readyz", "/metrics", "/openapi.json"):
            assert (await rig.http.get(path)).status_code == 200


@pytest.mark.postgres
async def test_a_list_holds_what_the_caller_may_query(made: Made, tokens_file: Path) -> None:
    made.index("seen-a", namespace="other")
    made.index("seen-b", namespace="team")
    async with Rig(made, auth="tokens", tokens_file=str(tokens_file)) as rig:

        async def namespaces(token: str) -> set[str]:
            response = await rig.http.get("/v1/indexes", headers={"Authorization": f"Bearer {token}"})
            return {entry["namespace"] for entry in response.json()["indexes"]}

        assert await namespaces("reader") == {"team"}
        assert await namespaces("elsewhere") == {"other"}
        assert await namespaces("writer") == set()


@pytest.mark.postgres
async def test_every_access_is_written_down_without_what_it_was_about(
    made: Made, index: Index, tokens_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with Rig(made, auth="tokens", tokens_file=str(tokens_file)) as rig:
        for token in ("reader", "writer", "nobody"):
            await rig.http.put(
                f"{index.path}/documents/id-of-somebody",
                json={"text": "text-of-somebody"},
                headers={"Authorization": f"Bearer {token}"},
            )
    lines = [line for line in "".join(capsys.readouterr()).splitlines() if " access " in line]
    assert len(lines) == 3
    for line, (caller, outcome) in zip(
        lines, [("reader", "denied"), ("writer", "allowed"), ("None", "unauthenticated")], strict=True
    ):
        assert f"caller={caller}" in line
        assert f"outcome={outcome}" in line
        assert "verb=create" in line
        assert f"index=team/{index.name}" in line
        assert "of-somebody" not in line
