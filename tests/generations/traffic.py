"""Requests that go on while generations change, and what is wrong with any of their answers."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from operations.site import Site

_WRITES_A_SECOND = 5.0
_WORDS = (
    "sand",
    "river",
    "copper",
    "window",
    "letter",
    "garden",
    "winter",
    "engine",
    "paper",
    "bridge",
    "music",
)
_SAME = 1e-3
"""Scores of one text for one question, by vectors of one model, that were computed in other batches."""


@dataclass
class Traffic:
    """What was asked, written and answered so far."""

    site: Site
    name: str
    """Of the index."""
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """How long each answer took."""
    generations: list[list[int]] = field(default_factory=list)
    """For each that asks: of its answers, in their order, each change once."""
    present: dict[str, str] = field(default_factory=dict)
    """Texts of documents, by id, as they were written last."""
    gone: set[str] = field(default_factory=set)
    """Documents that were deleted."""
    _scores: dict[tuple[int, str], float] = field(default_factory=dict)
    """Of a document that was asked for, by generation: the vectors of two models do not agree on one."""

    def all_see(self, generation: int) -> bool:
        """Whether the last answer that each got came from this generation."""
        return all(seen[-1:] == [generation] for seen in self.generations)

    def ask(self, http: httpx.Client, text: str, document: str, seen: list[int]) -> None:
        """Ask for a document that is there; note what is wrong with the answer."""
        begun = time.monotonic()
        answer = http.post(f"{self.site.path(self.name)}/search", json={"query": f"{text}?", "k": 3})
        self.seconds.append(time.monotonic() - begun)
        if answer.status_code != httpx.codes.OK:
            self.wrong.append(f"{answer.status_code}: {answer.text[:200]}")
            return
        told: dict[str, Any] = answer.json()
        generation = told["generation"]
        if generation not in seen[-1:]:
            seen.append(generation)
        found = {hit["document"]: hit["score"] for hit in told["hits"]}
        if document not in found:
            self.wrong.append(f"generation {generation} does not show {document}, but {sorted(found)}")
        elif abs(self._scores.setdefault((generation, document), found[document]) - found[document]) > _SAME:
            self.wrong.append(f"generation {generation} shows {document} by a vector of another")

    def write(self, http: httpx.Client, number: int) -> None:
        """Put a document, and delete one that was put before; each counts once it was acknowledged."""
        name = f"new-{number}"
        # No two alike: of equals, which ten are nearest is a matter of luck.
        text = (
            f"Somebody wrote {' '.join(random.Random(number).choices(_WORDS, k=8))} while much was changed."  # noqa: S311
        )
        put = http.put(f"{self.site.path(self.name)}/documents/{name}", json={"text": text})
        if put.status_code not in (httpx.codes.OK, httpx.codes.ACCEPTED):
            self.wrong.append(f"put: {put.status_code}: {put.text[:200]}")
            return
        self.present[name] = text
        old = f"new-{number - 3}"
        if number % 2 and old in self.present:
            gone = http.delete(f"{self.site.path(self.name)}/documents/{old}")
            if not gone.is_success:
                self.wrong.append(f"delete: {gone.status_code}: {gone.text[:200]}")
                return
            del self.present[old]
            self.gone.add(old)


@contextmanager
def traffic(
    site: Site, name: str, known: dict[str, str], *, askers: int = 1, asks_a_second: float = 1000.0
) -> Iterator[Traffic]:
    """Ask for known documents, and write others, until the context ends.

    Each of the askers has one question under way at a time; together they ask no more than so many.
    """
    made, over = Traffic(site, name), threading.Event()
    asked = list(known.items())

    def at_pace(a_second: float, act: Callable[[httpx.Client, int], None]) -> None:
        with httpx.Client(base_url=site.url, timeout=30) as http:
            number, begun = 0, time.monotonic()
            while not over.wait(max(0.0, begun + number / a_second - time.monotonic())):
                act(http, number)
                number += 1

    def ask(first: int, seen: list[int]) -> None:
        def one(http: httpx.Client, number: int) -> None:
            document, text = asked[(first + number) % len(asked)]
            made.ask(http, text, document, seen)

        at_pace(asks_a_second / askers, one)

    threads = [threading.Thread(target=at_pace, args=(_WRITES_A_SECOND, made.write))]
    for number in range(askers):
        made.generations.append([])
        first = number * len(asked) // askers
        threads.append(threading.Thread(target=ask, args=(first, made.generations[-1])))
    for thread in threads:
        thread.start()
    try:
        yield made
    finally:
        over.set()
        for thread in threads:
            thread.join()
