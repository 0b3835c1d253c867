"""Figures with their samples, medians and spread; the table and the JSON that are made of them."""

from __future__ import annotations

import json
import operator
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

_HOLDS: dict[str, Callable[[float, float], bool]] = {"≥": operator.ge, "≤": operator.le}


@dataclass(frozen=True)
class Goal:
    """What was promised of a figure."""

    sign: str
    """≥ or ≤."""
    value: float

    def __str__(self) -> str:
        return f"{self.sign} {self.value:g}"

    def reached(self, value: float) -> bool:
        """Whether a value keeps it."""
        return _HOLDS[self.sign](value, self.value)


@dataclass(frozen=True)
class Figure:
    """One measured thing: a sample for each round, or for each repetition."""

    bench: str
    name: str
    unit: str
    samples: tuple[float, ...]
    goal: Goal | None = None
    by_most: bool = False
    """The goal is held against the largest sample, not against the median."""

    @property
    def median(self) -> float:
        """Of the samples."""
        return statistics.median(self.samples)

    @property
    def low(self) -> float:
        """The least sample."""
        return min(self.samples)

    @property
    def high(self) -> float:
        """The largest sample."""
        return max(self.samples)

    @property
    def reached(self) -> bool | None:
        """Whether the goal is reached; None without one."""
        if self.goal is None:
            return None
        return self.goal.reached(self.high if self.by_most else self.median)

    def document(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "bench": self.bench,
            "name": self.name,
            "unit": self.unit,
            "median": self.median,
            "low": self.low,
            "high": self.high,
            "n": len(self.samples),
            "goal": str(self.goal) if self.goal else None,
            "reached": self.reached,
            "samples": self.samples,
        }


def ratios(ours: Sequence[float], baseline: Sequence[float]) -> tuple[float, ...]:
    """Return ours over baseline, round by round: what disturbs a round disturbs both."""
    return tuple(mine / theirs for mine, theirs in zip(ours, baseline, strict=True))


@dataclass
class Report:
    """All of one run."""

    about: dict[str, Any]
    """When, where, of which commit, and with which settings."""
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a reader of the figures has to know, found out by the run itself."""

    def add(self, *figures: Figure) -> None:
        """Take figures in."""
        self.figures += figures

    def show(self, file: TextIO) -> None:
        """Print all as a table."""
        console = Console(file=file, width=None if file.isatty() else 120, highlight=False)
        for key, value in self.about.items():
            console.print(f"{key}: {_flat(value)}", soft_wrap=True)
        console.print(self._table())
        for note in self.notes:
            console.print(f"- {note}", soft_wrap=True)

    def _table(self) -> Table:
        table = Table("bench", "figure")
        for heading in ("median", "low … high", "n", "unit", "goal", ""):
            table.add_column(heading, justify="right" if heading in ("median", "n", "goal") else "left")
        before = ""
        for figure in self.figures:
            if before and before != figure.bench:
                table.add_section()
            before = figure.bench
            table.add_row(*self._row(figure))
        return table

    @staticmethod
    def _row(figure: Figure) -> Iterator[str]:
        yield figure.bench
        yield figure.name
        yield _number(figure.median)
        yield f"{_number(figure.low)} … {_number(figure.high)}" if len(figure.samples) > 1 else ""
        yield str(len(figure.samples))
        yield figure.unit
        yield str(figure.goal or "")
        yield {None: "", True: "reached", False: "MISSED"}[figure.reached]

    def markdown(self) -> str:
        """Return all as it stands in docs/benchmarks.md."""
        headings = ("bench", "figure", "median", "low … high", "n", "unit", "goal", "")
        lines = [f"{key}: {_flat(value)}  " for key, value in self.about.items()]
        lines += ["", f"| {' | '.join(headings)} |", "|---|---|--:|---|--:|---|---|---|"]
        lines += [f"| {' | '.join(self._row(figure))} |" for figure in self.figures]
        lines += ["", *(f"- {note}" for note in self.notes)]
        return "\n".join(lines) + "\n"

    def write(self, path: Path) -> None:
        """Write all as JSON."""
        document = {
            "about": self.about,
            "figures": [figure.document() for figure in self.figures],
            "notes": self.notes,
        }
        path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _number(value: float) -> str:
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    return str(value)
