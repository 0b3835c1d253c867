"""Strangers with tokens of their own making are no load on the Kubernetes API."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from polaris.errors import Overloaded, Unauthenticated
from polaris_service.gate import Access, kubernetes_api
from polaris_service.gate.kubernetes_api import REVIEWS, KubernetesPolicy
from polaris_service.problems import from_error
from service.rig import until

pytestmark = [pytest.mark.unit, pytest.mark.anyio]

KNOWN = "known"


class SlowApi:
    """Answers reviews as the Kubernetes API does, those of strangers not before `go` is set."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.present: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self._lock = threading.Lock()
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                answer = json.dumps({"status": api.review(body)}).encode()
                self.send_response(201)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def review(self, body: dict[str, Any]) -> dict[str, Any]:
        kind, spec = body["kind"], body["spec"]
        with self._lock:
            self.present[kind] += 1
            self.most[kind] = max(self.most[kind], self.present[kind])
        try:
            if kind == "SubjectAccessReview":
                return {"allowed": True}
            if spec["token"] != KNOWN:
                self.go.wait()
                return {"authenticated": False}
            return {"authenticated": True, "audiences": ["polaris"], "user": {"username": KNOWN}}
        finally:
            with self._lock:
                self.present[kind] -= 1


@pytest.fixture
def api() -> Iterator[SlowApi]:
    slow = SlowApi()
    thread = threading.Thread(target=slow.server.serve_forever)
    thread.start()
    try:
        yield slow
    finally:
        slow.go.set()
        slow.server.shutdown()
        slow.server.server_close()
        thread.join()


@pytest.fixture
def environment(api: SlowApi, tmp_path: Path) -> dict[str, str]:
    cluster = {"name": "it", "cluster": {"server": f"http://127.0.0.1:{api.server.server_port}"}}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "it",
        "clusters": [cluster],
        "users": [{"name": "it", "user": {"token": "ours"}}],
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
    }
    file = tmp_path / "kubeconfig"
    file.write_text(json.dumps(config))
    return {"KUBECONFIG": str(file)}


async def test_only_so_many_tokens_are_asked_about_at_a_time_and_the_others_are_sent_away(
    api: SlowApi, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = KubernetesPolicy(["polaris"], 60, environment)
    await policy.start()
    try:
        known = await policy.who(KNOWN)
        monkeypatch.setattr(kubernetes_api, "_TURN_SECONDS", 0.2)
        strangers = [asyncio.create_task(policy.who(f"made up {number}")) for number in range(5 * REVIEWS)]
        await until(lambda: api.present["TokenReview"] == REVIEWS)
        await until(lambda: sum(task.done() for task in strangers) == 4 * REVIEWS)
        # Who is known is believed meanwhile, and can be asked about.
        assert await policy.who(KNOWN) == known
        assert await policy.may(known, Access.QUERY, "team", "handbook")
        api.go.set()
        errors = await asyncio.gather(*strangers, return_exceptions=True)
        sent_away = [error for error in errors if isinstance(error, Overloaded)]
        assert Counter(map(type, errors)) == {Overloaded: 4 * REVIEWS, Unauthenticated: REVIEWS}
        assert api.most["TokenReview"] == REVIEWS
        answer = from_error(sent_away[0])
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        # Nobody keeps a turn, and who was sent away is asked about the next time.
        with pytest.raises(Unauthenticated):
            await policy.who(f"made up {5 * REVIEWS - 1}")
    finally:
        api.go.set()
        await policy.stop()


async def test_one_who_leaves_gives_his_turn_back(api: SlowApi, environment: dict[str, str]) -> None:
    policy = KubernetesPolicy(["polaris"], 60, environment)
    await policy.start()
    try:
        strangers = [asyncio.create_task(policy.who(f"made up {number}")) for number in range(3 * REVIEWS)]
        await until(lambda: api.present["TokenReview"] == REVIEWS)
        for task in strangers:
            task.cancel()
        await asyncio.gather(*strangers, return_exceptions=True)
        api.go.set()
        assert (await policy.who(KNOWN)).name == KNOWN
    finally:
        api.go.set()
        await policy.stop()
