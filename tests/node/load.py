"""What a pod of the tests runs under POLARIS's image: it asks an index at a steady pace, and notes answers.

An open loop: a request is sent when its time has come, whatever became of those before it. Half of them
share connections that are kept, the others open one each; half ask with a vector, the others with a text,
every second of which nobody has asked before. A line of JSON for each request: when it was due (seconds
since 1970), how long it took from then on, its kind, what came back ("ok", a status, an exception), and
how often a connection was refused before it could be sent at all.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import time
from pathlib import Path

import httpx

TOKEN = Path("/var/run/secrets/polaris/token")
DIMENSION = 384
TIMEOUT = httpx.Timeout(30, connect=5)
# How long a refused connection is tried again: nothing of the request was sent, so nothing can be done twice.
REFUSED_SECONDS = 20.0
REFUSED_PAUSE_SECONDS = 0.1


def body(number: int) -> tuple[str, dict[str, object]]:
    """The kind of request that has this number, and what it asks."""
    match number % 4:
        case 0:
            return "new text", {"query": f"What does rule {number} say about deadlines?", "k": 3}
        case 2:
            return "known text", {"query": f"Who signs the contract of part {number % 40}?", "k": 3}
    return "vector", {"vector": [random.uniform(-1, 1) for _ in range(DIMENSION)], "k": 3}  # noqa: S311


def authorization() -> dict[str, str]:
    """The header with the token; the kubelet renews the file."""
    return {"Authorization": f"Bearer {TOKEN.read_text(encoding='ascii').strip()}"}


class Load:
    """Requests to one address, over kept and over fresh connections."""

    def __init__(self, url: str, index: str) -> None:
        self._path = f"{url}/v1/indexes/{index}/search"
        fresh = httpx.Limits(max_keepalive_connections=0)
        self._clients = {
            "kept": httpx.AsyncClient(trust_env=False, timeout=TIMEOUT),
            "fresh": httpx.AsyncClient(trust_env=False, timeout=TIMEOUT, limits=fresh),
        }

    async def ask(self, number: int, due: float) -> None:
        """Send one request, and write down what became of it."""
        kind, question = body(number)
        connection = "kept" if number // 4 % 2 else "fresh"
        refused, said = 0, "refused"
        while said == "refused" and time.time() < due + REFUSED_SECONDS:
            if refused:
                await asyncio.sleep(REFUSED_PAUSE_SECONDS)
            said = await self._once(self._clients[connection], question)
            refused += said == "refused"
        took = round(time.time() - due, 4)
        line = {"due": round(due, 4), "took": took, "kind": f"{kind}, {connection}", "said": said}
        print(json.dumps(line | {"refused": refused}), flush=True)

    async def _once(self, client: httpx.AsyncClient, question: dict[str, object]) -> str:
        try:
            answer = await client.post(self._path, json=question, headers=authorization())
        except (httpx.ConnectError, httpx.ConnectTimeout):
            return "refused"
        except httpx.HTTPError as error:
            return f"{type(error).__name__}: {error}"
        if answer.status_code != httpx.codes.OK:
            return f"{answer.status_code}: {answer.text[:500]}"
        return "ok" if answer.json()["hits"] else "no hits"


async def main() -> None:
    """Ask until the pod ends."""
    load = Load(os.environ["TARGET"], os.environ["INDEX"])
    every = 1 / float(os.environ["RATE"])
    begun = time.time()
    asking: set[asyncio.Task[None]] = set()
    for number in itertools.count():
        due = begun + number * every
        await asyncio.sleep(max(0.0, due - time.time()))
        task = asyncio.create_task(load.ask(number, due))
        asking.add(task)
        task.add_done_callback(asking.discard)


if __name__ == "__main__":
    asyncio.run(main())
