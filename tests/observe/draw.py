"""Dashboards as pictures: each panel's own queries, evaluated by Prometheus, as SVG.

`python -m observe.draw` runs a system with some minutes of traffic, and draws docs/dashboards/*.svg of it.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from docs.pages import ROOT
from observe.prometheus import Prometheus, dashboards, scraping
from observe.running import Running, running
from parts import servers

PICTURES = ROOT / "docs/dashboards"
VARIABLES = {"namespace": "rag", "name": "handbook", "__rate_interval": "30s"}
SECONDS = 100

# Pixels. Grafana's grid has 24 columns.
_COLUMN, _ROW, _GAP, _HEAD, _LINE = 52, 34, 6, 46, 15
_COLOURS = ("#3274d9", "#e0752d", "#299c46", "#a352cc", "#c4162a", "#0d9ba8", "#b58900", "#6c757d")
_STEPS = {
    "s": ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs")),
    "bytes": ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B")),
}
_SUFFIXES = {"reqps": " req/s", "ops": " /s"}

Series = tuple[str, list[tuple[float, float]]]
"""Its legend, and (seconds since 1970, value)."""


def concrete(expression: str, variables: Mapping[str, str] = VARIABLES) -> str:
    """An expression with Grafana's variables as a person chose them."""
    return re.sub(r"\$(\w+)", lambda found: variables[found[1]], expression)


def shown(value: float, unit: str) -> str:
    """A value as a person reads it, with its unit."""
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    for size, name in _STEPS.get(unit, ()):
        if abs(value) >= size:
            return f"{value / size:.3g} {name}"
    if unit in _STEPS and value:
        return f"{value:.1g} {unit}"
    return (f"{value:,.0f}" if value == int(value) else f"{value:.3g}") + _SUFFIXES.get(unit, "")


def ticks(top: float, unit: str) -> list[float]:
    """Round steps from 0 to at least `top`, round in what the unit is shown in."""
    size = next((size for size, _ in _STEPS.get(unit, ()) if top >= size), 1)
    return [size * mark for mark in _round_ticks(top / size)]


def _round_ticks(top: float) -> list[float]:
    rough = top / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power >= rough * 0.999)
    return [step * number for number in range(math.ceil(top / step - 1e-9) + 1)]


def series(prometheus: Prometheus, panel: Mapping[str, Any], begin: float, end: float) -> list[Series]:
    """What a panel shows."""
    found: list[Series] = []
    for target in panel["targets"]:
        parameters = {"query": concrete(target["expr"]), "start": f"{begin}", "end": f"{end}", "step": "1"}
        for row in prometheus.get("query_range", **parameters)["result"]:
            labels = row["metric"]
            legend = target["legendFormat"]
            for label in re.findall(r"{{(\w+)}}", legend):
                legend = legend.replace(f"{{{{{label}}}}}", labels.get(label, ""))
            points = [(float(at), float(value)) for at, value in row["values"]]
            if points := [point for point in points if math.isfinite(point[1])]:
                found.append((legend, points))
    return found


def _text(x: float, y: float, words: str, size: int = 11, colour: str = "#52545c", **more: str) -> str:
    rest = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in more.items())
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}"{rest}>{escape(words)}</text>'


def _cut(words: str, pixels: float, size: int = 11) -> str:
    """What has room; of a route the end, by which routes differ."""
    most = int(pixels / (size * 0.56))
    if len(words) <= most:
        return words
    return f"…{words[1 - most :]}" if words.startswith("/") else f"{words[: most - 1]}…"


def _stat(found: Sequence[Series], unit: str, wide: float, high: float) -> Iterator[str]:
    each = wide / len(found)
    size = 34 if len(found) < 4 else 24
    for number, (legend, points) in enumerate(found):
        middle, value = each * (number + 0.5), shown(points[-1][1], unit)
        yield _text(middle, high / 2 + 20, value, size, "#299c46", text_anchor="middle", font_weight="600")
        yield _text(middle, high / 2 + 44, _cut(legend, each - 6), 12, text_anchor="middle")


def _lines(
    found: Sequence[Series], unit: str, wide: float, high: float, span: tuple[float, float]
) -> Iterator[str]:
    begin, end = span
    marks = ticks(max((value for _, points in found for _, value in points), default=0) * 1.05 or 1, unit)
    legends = min(len(found), 4)
    left, right, top, bottom = 62.0, wide - 12, 38.0, high - 26 - _LINE * legends

    def across(at: float) -> float:
        return left + (right - left) * (at - begin) / (end - begin)

    def up(value: float) -> float:
        return bottom - (bottom - top) * value / marks[-1]

    for mark in marks:
        yield f'<path d="M{left} {up(mark):.1f}H{right}" stroke="#e4e5e8"/>'
        yield _text(left - 6, up(mark) + 4, shown(mark, unit), 10, text_anchor="end")
    for seconds in range(0, int(end - begin) + 1, 30):
        label = f"{seconds // 60}:{seconds % 60:02}"
        yield _text(across(begin + seconds), bottom + 14, label, 10, text_anchor="middle")
    for number, (_, points) in enumerate(found):
        path = "L".join(f"{across(at):.1f} {up(max(value, 0)):.1f}" for at, value in points)
        colour = _COLOURS[number % len(_COLOURS)]
        yield f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>'
    columns = math.ceil(len(found) / max(legends, 1))
    for number, (legend, points) in enumerate(found):
        room = (right - 12) / columns
        x, y = 12 + room * (number // legends), bottom + 31 + _LINE * (number % legends)
        yield f'<path d="M{x} {y - 4}h12" stroke="{_COLOURS[number % len(_COLOURS)]}" stroke-width="3"/>'
        last = shown(points[-1][1], unit)
        yield _text(x + 17, y, f"{_cut(legend, room - 26 - 6.5 * len(last))}: {last}")


def _panel(panel: Mapping[str, Any], found: Sequence[Series], span: tuple[float, float]) -> Iterator[str]:
    place, defaults = panel["gridPos"], panel["fieldConfig"]["defaults"]
    wide, high = place["w"] * _COLUMN - _GAP, place["h"] * _ROW - _GAP
    yield f'<g transform="translate({place["x"] * _COLUMN + _GAP} {place["y"] * _ROW + _HEAD})">'
    yield f'<rect width="{wide}" height="{high}" rx="3" fill="#fff" stroke="#d8d9dd"/>'
    yield _text(12, 22, panel["title"], 14, "#24292e", font_weight="600")
    if not found:
        said = defaults.get("noValue", "No data")
        yield _text(wide / 2, high / 2 + 10, said, 18, "#299c46", text_anchor="middle")
    elif panel["type"] == "stat":
        yield from _stat(found, defaults["unit"], wide, high)
    else:
        yield from _lines(found, defaults["unit"], wide, high, span)
    yield "</g>"


def picture(prometheus: Prometheus, board: Mapping[str, Any], begin: float, end: float) -> str:
    """A dashboard over this time."""
    wide = 24 * _COLUMN + _GAP
    high = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in board["panels"]) * _ROW + _HEAD
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" font-family="sans-serif">',
        f'<rect width="{wide}" height="{high}" fill="#f4f5f5"/>',
        _text(12, 30, board["title"], 19, "#24292e", font_weight="600"),
    ]
    for panel in board["panels"]:
        parts += _panel(panel, series(prometheus, panel, begin, end), (begin, end))
    return "\n".join([*parts, "</svg>", ""])


@contextmanager
def traffic(system: Running) -> Iterator[None]:
    """Searches, questions and documents, until the block ends."""
    ended = threading.Event()

    def ask() -> None:
        number = 0
        while not ended.wait(0.05):
            number += 1
            system.site.search(query=f"leave {number}")
            if number % 10 == 0:
                system.site.answer(f"Whoever asks for leave {number % 20} gets {number % 20} days.")
            if number % 100 == 0:
                texts = (f"Whoever asks for leave {n} gets {number + n} days." for n in range(20))
                system.site.load([{"id": f"d{n}", "text": text} for n, text in enumerate(texts)])

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def draw(folder: Path) -> None:
    """Run a system, and draw every dashboard."""
    with running(folder / "system") as system, scraping(system.addresses, folder) as prometheus:
        begin = time.time()
        with traffic(system):
            time.sleep(SECONDS)
            PICTURES.mkdir(exist_ok=True)
            for name, board in dashboards().items():
                drawn = picture(prometheus, board, begin + 15, begin + SECONDS)
                (PICTURES / f"{name}.svg").write_text(drawn, "utf-8")


if __name__ == "__main__":
    with servers.open_folder() as opened:
        draw(opened)
