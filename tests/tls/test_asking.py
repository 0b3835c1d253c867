"""Whom we believe when we ask over HTTPS: embedder and generator, and the commands that ask the service."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from cli.program import here
from embed.doubles import HashedProvider
from polaris.certificate import Certificate
from polaris.errors import EmbedderUnavailable, GeneratorUnavailable
from polaris.settings import ServiceSettings, WorkerSettings
from polaris_service.answer import generators
from polaris_service.answer.prompt import Prompt
from polaris_service.embed.provider import Kind, Provider
from polaris_service.embed.registry import Embedders
from polaris_service.embed.server import create_app
from polaris_service.trust import Trusting
from tls import https
from tls.authority import Authority, mounted, shown

pytestmark = pytest.mark.anyio


class Site:
    """A server over HTTPS, with its certificate and the file of authorities that a client has."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority()
        self.tls = mounted(folder / "tls", self.authority.pair())
        self._authorities = mounted(folder / "ca", {"ca.crt": self.authority.pem})
        self.certificate = Certificate(
            self.tls.folder / "tls.crt", self.tls.folder / "tls.key", CollectorRegistry()
        )
        self.ca_file = self._authorities.folder / "ca.crt"
        self.port = 0

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    async def is_of_another_authority(self) -> Authority:
        """The server shows a certificate of a new authority, from the next connection on."""
        new = Authority()
        self.tls.write(new.pair())
        await until(lambda: _believed(self.port, new))
        return new

    def believe(self, text: str) -> None:
        self._authorities.write({"ca.crt": text})

    @contextmanager
    def serving(self, app: Any) -> Iterator[None]:
        with https.serving(app, self.certificate) as self.port:
            yield


def _believed(port: int, authority: Authority) -> bool:
    try:
        return bool(shown(port, authority.trusted()))
    except ssl.SSLCertVerificationError:
        return False


async def until(true: Any) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110  what is waited for happens in a thread
            await asyncio.sleep(0.02)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def embedder(site: Site) -> Iterator[Site]:
    with site.serving(create_app(HashedProvider(), certificate=site.certificate)):
        yield site


def provider(site: Site, way: str, ca_file: Path | None = None) -> Provider:
    """The provider as settings name it: the default one, or one more of the file."""
    file = str(site.ca_file if ca_file is None else ca_file)
    if way == "default":
        given = {"embedder": site.url, "embedder_ca_file": file}
        return Embedders.of(WorkerSettings.load({}, given)).get("default")
    more = {"name": "more", "url": site.url, "caFile": file}
    return Embedders.of(WorkerSettings.load({}, {"providers": [more]})).get("more")


async def embed(asked: Provider) -> int:
    return len(await asked.embed("hashed", ["um texto"], Kind.QUERY))


@pytest.mark.parametrize("way", ["default", "another provider"])
async def test_an_embedder_is_believed_by_the_authority_of_the_settings_only(
    embedder: Site, tmp_path: Path, way: str
) -> None:
    known = provider(embedder, way)
    stranger = provider(embedder, way, Authority().file(tmp_path / "other.crt"))
    public = Embedders.of(WorkerSettings.load({}, {"embedder": embedder.url})).get("default")
    try:
        assert await embed(known) == 1
        for refusing in (stranger, public):
            with pytest.raises(EmbedderUnavailable, match="certificate verify failed"):
                await embed(refusing)
    finally:
        for one in (known, stranger, public):
            await one.close()


async def test_an_embedder_by_another_name_than_its_certificates_is_not_believed(
    tmp_path: Path,
) -> None:
    site = Site(tmp_path)
    site.tls.write(site.authority.pair("embedder.rag.svc"))
    with site.serving(create_app(HashedProvider())):
        asked = provider(site, "default")
        try:
            with pytest.raises(EmbedderUnavailable, match="Hostname mismatch"):
                await embed(asked)
        finally:
            await asked.close()


async def test_a_new_authority_is_believed_without_a_restart_and_a_broken_file_changes_nothing(
    embedder: Site,
) -> None:
    asked: Any = provider(embedder, "default")
    try:
        assert await embed(asked) == 1
        trusting = asked._client._transport
        new = await embedder.is_of_another_authority()
        # The connection that was kept goes on, whatever the file says.
        embedder.believe("no certificate")
        await while_embedding(asked, lambda: trusting._followed.problem is None)
        for believed in (embedder.authority.pem + new.pem, new.pem):
            before = trusting._current
            embedder.believe(believed)
            await while_embedding(asked, partial(_is, trusting, before))
            assert trusting._followed.problem is None
    finally:
        await asked.close()


def _is(trusting: Trusting, connections: object) -> bool:
    return trusting._current is connections


async def while_embedding(asked: Provider, true: Callable[[], bool]) -> None:
    """Embed, and never in vain, for as long as it is true."""
    async with asyncio.timeout(60):
        while true():
            assert await embed(asked) == 1
            await asyncio.sleep(0.02)
    assert await embed(asked) == 1


async def test_without_the_file_it_says_so_and_works_once_it_is_there(site: Site, tmp_path: Path) -> None:
    late = tmp_path / "late.crt"
    with site.serving(create_app(HashedProvider())):
        asked = provider(site, "default", late)
        try:
            with pytest.raises(EmbedderUnavailable, match=r"authorities .*late\.crt.*No such file"):
                await embed(asked)
            late.write_text(site.authority.pem)
            assert await embed(asked) == 1
        finally:
            await asked.close()


async def test_an_answer_that_is_being_read_survives_a_change_of_authorities(site: Site) -> None:
    """It is read to its end over the old connections, which are closed behind it."""
    go_on = threading.Event()

    async def pieces() -> Any:
        yield b"a"
        await asyncio.to_thread(go_on.wait, 60)
        yield b"b"

    async def streaming(_: Request) -> Response:
        return StreamingResponse(pieces())

    async def short(_: Request) -> Response:
        return Response("c")

    trusting = Trusting(site.ca_file)
    with site.serving(Starlette(routes=[Route("/long", streaming), Route("/short", short)])):
        async with httpx.AsyncClient(transport=trusting, base_url=site.url) as http:
            async with http.stream("GET", "/long") as answer:
                read = answer.aiter_bytes()
                assert await anext(read) == b"a"
                before = trusting._current
                site.believe(site.authority.pem + Authority().pem)
                while trusting._current is before:
                    assert (await http.get("/short")).text == "c"
                    await asyncio.sleep(0.02)
                assert before is not None
                assert (before.retired, before.users) == (True, 1)
                go_on.set()
                assert [piece async for piece in read] == [b"b"]
            assert before.users == 0
    assert not trusting._closing


_EVENTS = [
    {"choices": [{"index": 0, "delta": {"content": "An answer"}, "finish_reason": None}]},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
]


async def test_a_generator_is_believed_by_the_authority_of_the_settings_only(
    site: Site, tmp_path: Path
) -> None:
    async def complete(_: Request) -> Response:
        lines = [f"data: {json.dumps(event)}\n\n" for event in _EVENTS]
        return StreamingResponse(iter([*lines, "data: [DONE]\n\n"]), media_type="text/event-stream")

    async def written(ca_file: Path) -> str:
        given = {"generator": "openai", "generator_url": site.url, "generator_model": "m"}
        generator = generators.of(ServiceSettings.load({}, {**given, "generator_ca_file": str(ca_file)}))
        try:
            async with aclosing(generator.stream(Prompt("q", (), "s", "u"), [])) as pieces:
                return "".join([piece async for piece in pieces])
        finally:
            await generator.stop()

    with site.serving(Starlette(routes=[Route("/v1/chat/completions", complete, methods=["POST"])])):
        assert await written(site.ca_file) == "An answer"
        with pytest.raises(GeneratorUnavailable, match="certificate verify failed"):
            await written(Authority().file(tmp_path / "other.crt"))


def test_commands_believe_the_authority_that_they_are_told(site: Site, tmp_path: Path) -> None:
    async def search(_: Request) -> Response:
        return JSONResponse({"hits": [], "generation": 1, "strategy": "exact", "degraded": []})

    app = Starlette(routes=[Route("/v1/indexes/default/notes/search", search, methods=["POST"])])
    with site.serving(app):
        asked = ("search", "notes", "text", "--server", site.url, "-o", "json")
        assert here(*asked, "--ca-file", site.ca_file).code == 0
        assert here(*asked, variables={"POLARIS_CA_FILE": str(site.ca_file)}).code == 0
        stranger = Authority().file(tmp_path / "other.crt")
        for flags in ((), ("--ca-file", stranger)):
            refused = here(*asked, *flags)
            assert refused.code == 1
            assert f"the certificate of {site.url} is not believed: unable to get local" in refused.err
            assert "--ca-file or POLARIS_CA_FILE" in refused.err
    for file, said in ((tmp_path / "none", "No such file"), (Path(__file__), "no certificate in PEM")):
        wrong = here(*asked, "--ca-file", file)
        assert wrong.code == 2
        assert said in wrong.err


async def test_a_certificate_that_cannot_be_renewed_is_told_at_the_embedders_readyz(embedder: Site) -> None:
    def ready() -> httpx.Response:
        trusted = embedder.authority.trusted()
        return httpx.get(f"{embedder.url}/readyz", verify=trusted, trust_env=False)

    await until(lambda: ready().status_code == 200)
    assert ready().text == "ok\n"
    embedder.tls.write({"tls.crt": "", "tls.key": ""})
    await until(lambda: ready().text.startswith("an older certificate is served: "))
    assert ready().status_code == 200
