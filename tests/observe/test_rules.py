"""Alerts and dashboards, judged by Prometheus itself over a system that runs."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs.pages import ROOT
from observe.draw import PICTURES, VARIABLES, concrete, picture
from observe.prometheus import (
    ALERTS,
    Prometheus,
    dashboards,
    promtool,
    queries,
    rules,
    scraping,
)
from observe.running import Running
from observe.test_metrics import table

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def prometheus(system: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that scrapes the system."""
    with scraping(system.addresses, tmp_path_factory.mktemp("prometheus")) as made:
        yield made


def test_promtool_takes_the_rules() -> None:
    code, said = promtool("check", "rules", ALERTS)
    assert code == 0, said


def test_each_alert_fires_when_it_should_and_not_otherwise(tmp_path: Path) -> None:
    shutil.copy(ALERTS, tmp_path / "alerts.yaml")
    shutil.copy(HERE / "rules_test.yaml", tmp_path / "rules_test.yaml")
    code, said = promtool("test", "rules", tmp_path / "rules_test.yaml")
    assert code == 0, said


def test_each_alert_is_tested_both_ways() -> None:
    tests = yaml.safe_load((HERE / "rules_test.yaml").read_text("utf-8"))["tests"]
    tried = {(one["alertname"], bool(one["exp_alerts"])) for test in tests for one in test["alert_rule_test"]}
    assert tried == {(rule["alert"], fires) for rule in rules() for fires in (True, False)}


def test_each_alert_has_a_runbook_and_each_runbook_an_alert() -> None:
    page = (ROOT / "docs/runbooks.md").read_text("utf-8")
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert list(sections) == [rule["alert"] for rule in rules()]
    for rule in rules():
        assert rule["annotations"]["runbook"] == rule["alert"]
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        for word in ("Means", "Look at", "Do"):
            assert f"- **{word}:** " in sections[rule["alert"]], f"{rule['alert']} does not say: {word}"


def test_every_metric_that_is_named_is_one() -> None:
    histograms = [name for name, row in table().items() if row.kind == "histogram"]
    known = {*table()} | {f"{name}_{end}" for name in histograms for end in ("bucket", "count", "sum")}
    texts = [rule["expr"] for rule in rules()]
    texts += [expression for board in dashboards().values() for _, expression in queries(board)]
    texts.append((ROOT / "docs/runbooks.md").read_text("utf-8"))
    named = {name for text in texts for name in re.findall(r"\bpolaris_\w+", text)}
    assert named <= known


def test_every_alert_is_evaluated_and_silent_where_all_is_well(prometheus: Prometheus) -> None:
    groups = prometheus.get("rules")["groups"]
    found = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert list(found) == [rule["alert"] for rule in rules()]
    for rule in rules():
        assert prometheus.get("query", query=rule["expr"])["resultType"] == "vector"
        assert found[rule["alert"]]["health"] in ("ok", "unknown")
        assert prometheus.rows(rule["expr"]) == [], rule["alert"]


def test_every_query_of_the_dashboards_tells_of_this_system(prometheus: Prometheus, system: Running) -> None:
    system.site.search(query="leave 3")
    for name, board in dashboards().items():
        empty = {title for title, expression in queries(board) if not prometheus.rows(concrete(expression))}
        # Those that show what has not happened to this system, an error or a build, say so.
        assert empty <= {
            panel["title"] for panel in board["panels"] if "noValue" in panel["fieldConfig"]["defaults"]
        }, name


def test_each_dashboard_has_a_picture_that_shows_each_of_its_panels(prometheus: Prometheus) -> None:
    page = (ROOT / "docs/dashboards.md").read_text("utf-8")
    for name, board in dashboards().items():
        titles = {panel["title"] for panel in board["panels"]}
        now = picture(prometheus, board, time.time() - 5, time.time())
        kept = (PICTURES / f"{name}.svg").read_text("utf-8")
        for drawn in (now, kept):
            assert titles <= set(re.findall(r">([^<]+)</text>", drawn)), name
        assert "No data" not in kept, name
        assert f"(dashboards/{name}.svg)" in page
        for title in titles:
            assert f"| {title} |" in page, f"{name}: {title}"


def test_the_choices_of_a_dashboard_are_there(prometheus: Prometheus) -> None:
    (board,) = [board for name, board in dashboards().items() if name == "index"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
            assert found is not None
            rows: list[Any] = prometheus.rows(concrete(found[1]))
            assert {row["metric"][found[2]] for row in rows} == {VARIABLES[found[2]]}


def test_dashboards_have_names_of_their_own_and_each_panel_a_unit_and_a_sentence() -> None:
    boards = dashboards()
    assert set(boards) == {"overview", "index", "operator"}
    assert len({board["uid"] for board in boards.values()}) == len(boards)
    for board in boards.values():
        assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
        for panel in board["panels"]:
            assert panel["description"].endswith(".")
            assert panel["fieldConfig"]["defaults"]["unit"]
