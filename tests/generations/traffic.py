"""Requests that go on while generations change, and what is wrong with any of their answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from operations.site import Site


@dataclass
class Traffic:
    """What was asked, written and answered so far."""

    site: Site
    name: str
    """Of the index."""
    wrong: list[str] = field(default_factory=list)
    answers: int = 0
    generations: list[int] = field(default_factory=list)
    """Of answers, in their order, each change once."""
    present: dict[str, str] = field(default_factory=dict)
    """Texts of documents, by id, as they were written last."""
    gone: set[str] = field(default_factory=set)
    """Documents that were deleted."""

    def ask(self, http: httpx.Client, text: str, document: str) -> None:
        """Ask for a document that is there; note what is wrong with the answer."""
        answer = http.post(f"{self.site.path(self.name)}/search", json={"query": f"{text} ?", "k": 3})
        if answer.status_code != httpx.codes.OK:
            self.wrong.append(f"{answer.status_code}: {answer.text[:200]}")
            return
        told: dict[str, Any] = answer.json()
        self.answers += 1
        if told["generation"] not in self.generations[-1:]:
            self.generations.append(told["generation"])
        found = {hit["document"] for hit in told["hits"]}
        if document not in found:
            self.wrong.append(
                f"generation {told['generation']} does not show {document}, but {sorted(found)}"
            )

    def write(self, http: httpx.Client, number: int) -> None:
        """Put a document, and delete one that was put before; each counts once it was acknowledged."""
        name = f"new-{number}"
        text = f"Somebody wrote sentence number {number} while much was changed."
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
    site: Site, name: str, known: dict[str, str], *, writes_a_second: float = 5.0
) -> Iterator[Traffic]:
    """Ask for known documents, one after another, and write others, until the context ends."""
    made, over = Traffic(site, name), threading.Event()
    asked = list(known.items())

    def ask() -> None:
        with httpx.Client(base_url=site.url, timeout=30) as http:
            number = 0
            while not over.is_set():
                document, text = asked[number % len(asked)]
                made.ask(http, text, document)
                number += 1

    def write() -> None:
        with httpx.Client(base_url=site.url, timeout=30) as http:
            number, begun = 0, time.monotonic()
            while not over.wait(max(0.0, begun + number / writes_a_second - time.monotonic())):
                made.write(http, number)
                number += 1

    threads = [threading.Thread(target=work) for work in (ask, write)]
    for thread in threads:
        thread.start()
    try:
        yield made
    finally:
        over.set()
        for thread in threads:
            thread.join()
