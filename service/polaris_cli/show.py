"""What commands print: tables and progress for people, JSON for programs.

Results go to stdout, everything else to stderr. Colours and moving bars are for terminals only.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress

_PLAIN_SECONDS = 5.0
# A document may hold what a terminal would obey.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def clean(text: str) -> str:
    """Return text that does nothing to a terminal but to be read."""
    return _CONTROLS.sub("\ufffd", text)


def json_out(value: Any) -> None:
    """Print one JSON value, for programs."""
    print(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def say(sentence: str) -> None:
    """Tell a person something that is no result."""
    print(clean(sentence), file=sys.stderr)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows below headings: fitted to the terminal, or aligned and in full where there is none."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        drawn = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            drawn.add_column(column, overflow="fold")
        for row in rows:
            drawn.add_row(*(Text(clean(cell)) for cell in row))
        Console().print(drawn)
        return
    everything = [columns, *([clean(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in everything) for i in range(len(columns))]
    for line in everything:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(padded).rstrip())


class Meter(Protocol):
    """Shows how far something is."""

    def set(self, done: int, total: int | None = None, about: str | None = None) -> None:
        """Say that `done` of `total` (None: as before) are done, and what of (None: as before)."""
        ...


@contextlib.contextmanager
def step(about: str) -> Iterator[Callable[[str], None]]:
    """Show on stderr that something is being done, and how long it took; lends a way to say more."""
    began = time.monotonic()
    with contextlib.ExitStack() as showing:
        more: Callable[[str], None] = lambda _: None  # noqa: E731  nothing can move
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.markup import escape

            status = showing.enter_context(Console(stderr=True).status(escape(about)))
            more = lambda detail: status.update(escape(clean(f"{about}: {detail}")))  # noqa: E731
        try:
            yield more
        except BaseException:
            showing.close()
            say(f"✗ {about}")
            raise
    done(about, began)


def done(about: str, began: float) -> None:
    """Say on stderr that something is done that began at this moment of the monotonic clock."""
    say(f"✓ {about} ({time.monotonic() - began:.1f} s)")


class _Bar:
    def __init__(self, progress: Progress, about: str, total: int | None) -> None:
        self._progress = progress
        self._task = progress.add_task(about, total=total, rate="")
        self._began = time.monotonic()

    def set(self, done: int, total: int | None = None, about: str | None = None) -> None:
        rate = _rate(done, self._began)
        self._progress.update(self._task, completed=done, total=total, description=about, rate=rate)


class _Lines:
    """A line now and then: for logs and pipes, where nothing can move."""

    def __init__(self, about: str, total: int | None) -> None:
        self._about, self._total = about, total
        self._began = self._said = time.monotonic()

    def set(self, done: int, total: int | None = None, about: str | None = None) -> None:
        self._about, self._total = about or self._about, self._total if total is None else total
        now = time.monotonic()
        if now - self._said >= _PLAIN_SECONDS:
            self._said = now
            of = f" of {self._total:,}" if self._total else ""
            say(f"{self._about}: {done:,}{of} {_rate(done, self._began)}".rstrip())


def _rate(done: int, began: float) -> str:
    each_second = done / max(time.monotonic() - began, 0.1)
    if not done:
        return ""
    return f"{each_second:,.0f}/s" if each_second >= 10 else f"{each_second:.1f}/s"


@contextlib.contextmanager
def meter(about: str, total: int | None = None) -> Iterator[Meter]:
    """Show progress on stderr while the block runs: a bar with rate and time left, or lines."""
    if not sys.stderr.isatty():
        yield _Lines(about, total)
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.SpinnerColumn(),
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[rate]}"),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield _Bar(progress, about, total)
