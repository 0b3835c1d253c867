"""Documents to the service: in batches that bound memory, again where it is busy or away.

Documents are idempotent, so what was not answered for is sent again.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from polaris.errors import DeadlineExceeded, Unavailable
from polaris_cli.client import Service, problem
from polaris_cli.load.document import Line, Refused, Skipped
from polaris_cli.load.files import Item
from polaris_cli.names import IndexName
from polaris_cli.show import Meter

_BATCH_LINES = 1000
_BATCH_BYTES = 8 * 2**20
_BUSY = {429, 503}
_FIRST_LOOK, _LONGEST_LOOK = 0.1, 1.0
_FIRST_SEARCH, _LONGEST_SEARCH = 0.5, 30.0


@dataclass
class Summary:
    """What became of a load."""

    new: int = 0
    """Documents that are new or changed."""
    unchanged: int = 0
    refused: list[Refused] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    assumed: list[Line] = field(default_factory=list)
    """Documents whose encoding had to be assumed; without their data."""
    sequence: int = 0
    """The highest that was given out: what `after_sequence` takes."""

    @property
    def documents(self) -> int:
        """Documents that the index holds now by this load."""
        return self.new + self.unchanged


class Loader:
    """Loads into one index; tells of each refusal as it comes."""

    def __init__(self, service: Service, index: IndexName, tell: Callable[[str], None]) -> None:
        self._service = service
        self._index = index
        self._tell = tell
        self._before = 0
        """The index's sequence before this load."""
        self.summary = Summary()

    def load(self, items: Iterable[Item], meter: Meter) -> None:
        """Send all; raises where the service refuses the whole, or stays away for too long."""
        self._before = int(self._info()["sequence"])
        done = 0
        for batch in batches(self._lines(items)):
            self._send(batch)
            done += len(batch)
            meter.set(done)

    def wait(self, meter: Meter) -> None:
        """Return once all of this load can be found; tell of documents that could not be embedded.

        Others may write to the index all the while: what they write is not waited for.
        """
        pause, most, seconds = _FIRST_LOOK, 0, _FIRST_SEARCH
        while pending := (info := self._info())["pending"]:
            most = max(most, pending)
            meter.set(most - pending, most)
            if self._can_be_found(info["dimension"], seconds):
                break
            seconds = min(seconds * 2, _LONGEST_SEARCH)
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_LOOK)
        if self._info()["failed"]:
            self._tell_failed()

    def _can_be_found(self, dimension: int, seconds: float) -> bool:
        """Return whether a search finds all of this load within that time.

        The search itself counts as well, so the time must be able to grow: before its graph is built an
        index compares every row.
        """
        # Any vector will do, and none has to be made.
        asked = {"vector": [1.0] + [0.0] * (dimension - 1), "k": 1, "timeout_ms": int(seconds * 1000)}
        body = {**asked, "after_sequence": self.summary.sequence}
        try:
            self._service.patiently(
                lambda: self._service.post(f"{self._index.path}/search", body), self._tell
            )
        except DeadlineExceeded:
            return False
        return True

    def _info(self) -> Any:
        return self._service.patiently(lambda: self._service.get(self._index.path), self._tell)

    def _tell_failed(self) -> None:
        """Tell of documents of this load that were given up on; others' are theirs to know."""
        after = ""
        while True:
            query = urlencode({"state": "failed", "limit": 1000, "after": after})
            page = self._service.get(f"{self._index.path}/documents?{query}")
            for document in page["documents"]:
                if self._before < document["sequence"] <= self.summary.sequence:
                    why = f"can't be made searchable: {document.get('error') or 'the worker gave up'}"
                    self._refuse(Refused(document["id"], why))
            if not (after := page["after"] or ""):
                return

    def _lines(self, items: Iterable[Item]) -> Iterator[Line]:
        for item in items:
            match item:
                case Line():
                    yield item
                case Refused():
                    self._refuse(item)
                case Skipped():
                    self.summary.skipped.append(item)

    def _refuse(self, refused: Refused) -> None:
        self._tell(str(refused))
        self.summary.refused.append(refused)

    def _send(self, batch: Sequence[Line]) -> None:
        left = deque(batch)

        def attempt() -> None:
            for result in self._results(tuple(left)):
                self._take(left[0], result)
                left.popleft()
            if left:
                raise Unavailable(f"the service broke off with {len(left)} documents to go")

        self._service.patiently(attempt, self._tell)

    def _results(self, lines: Sequence[Line]) -> Iterator[Mapping[str, Any]]:
        request = {
            "content": b"\n".join(line.data for line in lines) + b"\n",
            "headers": {"Content-Type": "application/x-ndjson"},
        }
        path = f"{self._index.path}/documents"
        with self._service.stream("POST", path, **request) as response:
            for _, text in zip(range(len(lines)), response.iter_lines(), strict=False):
                yield json.loads(text)

    def _take(self, line: Line, result: Mapping[str, Any]) -> None:
        status = result.get("status", 202)
        if status in _BUSY:
            raise problem(status, result, str(result.get("retry_after", "")))
        if status >= 400:
            self._refuse(Refused(line.source, f"was refused: {problem(status, result)}"))
            return
        self.summary.sequence = max(self.summary.sequence, result.get("sequence") or 0)
        self.summary.new += status == 202
        self.summary.unchanged += status != 202
        if line.assumed:
            self.summary.assumed.append(Line(line.source, b"", line.id, line.assumed))


def batches(lines: Iterable[Line]) -> Iterator[list[Line]]:
    """Yield lines in batches that are bounded in number and bytes; a line beyond that is one alone."""
    batch: list[Line] = []
    size = 0
    for line in lines:
        if batch and (len(batch) == _BATCH_LINES or size + len(line.data) > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(line)
        size += len(line.data)
    if batch:
        yield batch
