"""Many renderings of the chart at once: a chart around it that takes it in once for each set of values."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from kube.helm import helm

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "polaris"
CRDS = ROOT / "charts" / "polaris-crds"
NAMESPACE = "charted"

Values = Mapping[str, Any]

# All renderings have the names that a release `polaris` of the chart itself would give.
_NAMES = {"nameOverride": "polaris", "fullnameOverride": "polaris"}
_SOURCE = re.compile(r"^---\n# Source: [^/]+/charts/(\w+)/templates/\S+\n", re.MULTILINE)


def render(*flags: str, release: str = "polaris") -> list[dict[str, Any]]:
    """Return the objects that helm renders."""
    done = helm("template", release, str(CHART), "--namespace", NAMESPACE, *flags)
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def render_all(wanted: Mapping[str, Values]) -> dict[str, frozenset[str]]:
    """Return, for each set of values, the texts of the objects; one run of helm for all of them.

    Names are lower-case words. Raises ToolError with what helm said about the first that it refuses.
    """
    with tempfile.TemporaryDirectory(prefix="polaris-charts-") as folder:
        around = Path(folder)
        shutil.copytree(CHART, around / "charts" / "polaris")
        version = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))["version"]
        chart = {
            "apiVersion": "v2",
            "name": "around",
            "version": "0.0.0",
            "dependencies": [{"name": "polaris", "version": version, "alias": name} for name in wanted],
        }
        values = {name: {**_NAMES, **given} for name, given in wanted.items()}
        (around / "Chart.yaml").write_text(yaml.safe_dump(chart), "utf-8")
        (around / "values.yaml").write_text(yaml.safe_dump(values), "utf-8")
        done = helm("template", "polaris", around, "--namespace", NAMESPACE)
    _, *parts = _SOURCE.split(done.stdout)
    objects: dict[str, set[str]] = {name: set() for name in wanted}
    for name, text in zip(parts[::2], parts[1::2], strict=True):
        # The alias is the chart's name there.
        objects[name].add(text.replace(f"helm.sh/chart: {name}-", "helm.sh/chart: polaris-").strip())
    return {name: frozenset(texts) for name, texts in objects.items()}
