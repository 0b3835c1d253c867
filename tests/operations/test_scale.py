"""The page on scale: what it calculates follows from what it says was measured."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import yaml

from docs.pages import ROOT, block
from kube.helm import helm

PAGE = (ROOT / "docs/scale.md").read_text("utf-8")
_UNITS = {"MB": 1e6, "GB": 1e9, "TB": 1e12, "s": 1.0, "min": 60.0, "h": 3600.0, "days": 86400.0}


def _measured(figure: str) -> float:
    (found,) = re.findall(rf"^\| {figure} \| ([\d.,]+) \|", PAGE, re.MULTILINE)
    return float(found.replace(",", ""))


def _value(text: str) -> float:
    number, _, unit = text.replace(",", "").partition(" ")
    return float(number) * _UNITS.get(unit, 1.0)


@pytest.mark.unit
@pytest.mark.parametrize(("chunks", "power"), [("10⁶", 6), ("10⁸", 8), ("10¹⁰", 10)])
def test_what_is_calculated_follows_from_what_was_measured(chunks: str, power: int) -> None:
    (row,) = re.findall(rf"^\| {chunks} \| (.*) \|$", PAGE, re.MULTILINE)
    memory, disk, build, parallel, cost = map(_value, row.split(" | "))
    rows = 10**power
    index, table = _measured("40,000 chunks: HNSW"), _measured("40,000 chunks: table")
    again = (4 / 3) ** (math.log10(rows / 40_000) / 4)
    assert memory == pytest.approx(rows * index * 1.2, rel=0.1)
    assert disk == pytest.approx(rows * (table + index + 500 + 1000), rel=0.1)
    assert build == pytest.approx(
        rows * _measured("40,000 chunks: build, 1GB of memory") * 1e-6 * again, rel=0.1
    )
    assert parallel == pytest.approx(build / 16, rel=0.1)
    assert cost == pytest.approx(2 * (memory / 1e9 * 5 + disk / 1e9 * 0.10), rel=0.1)


@pytest.mark.kubernetes
def test_the_values_of_a_release_for_reading_make_a_service_that_reads_from_the_standby(
    tmp_path: Path,
) -> None:
    values = tmp_path / "values.yaml"
    values.write_text(block(ROOT / "docs/scale.md", "yaml", "POLARIS_READ_HOST"))
    rendered = helm("template", "reading", str(ROOT / "charts/polaris"), "--values", str(values)).stdout
    (deployment,) = [o for o in yaml.safe_load_all(rendered) if o and o["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert {"name": "POLARIS_READ_HOST", "value": "postgres-ro.rag.svc"} in container["env"]
