"""Prometheus and promtool, as Go modules: built once into the cache, and run for a test.

`python -m observe.prometheus` builds what is missing.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import yaml

from docs.pages import ROOT
from kube import leash
from kube.build import Module, binaries, say
from mission.system import wait_for
from polaris_cli.up.ports import any_free

ALERTS = ROOT / "charts/polaris/files/alerts.yaml"
DASHBOARDS = ROOT / "charts/polaris/files/dashboards"
# Without the clients of every cloud: a third of the time to build.
MODULE = Module(
    Path(__file__).parent,
    {name: f"github.com/prometheus/prometheus/cmd/{name}" for name in ("prometheus", "promtool")},
    tags="remove_all_sd,netgo",
)


@cache
def tools() -> dict[str, Path]:
    """Where the two are."""
    return binaries(module=MODULE)


def promtool(*arguments: str | Path) -> tuple[int, str]:
    """Run it; return its code and what it said."""
    done = subprocess.run(
        [tools()["promtool"], *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, done.stdout + done.stderr


class Prometheus:
    """One that runs."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=30, trust_env=False)

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer; AssertionError where it is an error."""
        answer = self._http.get(f"/api/v1/{path}", params=parameters)
        assert answer.status_code == httpx.codes.OK, f"{parameters}: {answer.text}"
        return answer.json()["data"]

    def rows(self, expression: str) -> list[Any]:
        """What an expression is now."""
        found: list[Any] = self.get("query", query=expression)["result"]
        return found

    def ready(self) -> bool:
        """Whether it answers."""
        try:
            return self._http.get("/-/ready").is_success
        except httpx.HTTPError:
            return False

    def close(self) -> None:
        """Close connections."""
        self._http.close()


@contextmanager
def scraping(targets: Mapping[str, str], folder: Path, seconds: int = 1) -> Iterator[Prometheus]:
    """Run a Prometheus with our rules that scrapes these addresses, by job."""
    configuration = {
        "global": {"scrape_interval": f"{seconds}s", "evaluation_interval": f"{seconds}s"},
        "rule_files": [str(ALERTS)],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": [url.removeprefix("http://")]}]}
            for job, url in targets.items()
        ],
    }
    file, url = folder / "prometheus.yaml", f"127.0.0.1:{any_free()}"
    file.write_text(yaml.safe_dump(configuration))
    command = [
        str(tools()["prometheus"]),
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={url}",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        started = leash.start(command, log, cwd=folder)
    made = Prometheus(f"http://{url}")
    try:
        wait_for("Prometheus to be ready", made.ready)
        wait_for(
            "every program to be scraped twice",
            lambda: len(made.rows("count_over_time(up[1m]) >= 3 and up == 1")) == len(targets),
        )
        yield made
    finally:
        made.close()
        leash.stop(started)


def rules() -> list[dict[str, Any]]:
    """Every alert."""
    groups = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboards() -> dict[str, dict[str, Any]]:
    """Every dashboard, by its file's name."""
    return {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(DASHBOARDS.glob("*.json"))}


def queries(dashboard: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Title and expression of each query of a dashboard's panels and variables."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


if __name__ == "__main__":
    for built in tools().values():
        say(str(built))
