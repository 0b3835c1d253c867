"""The workflows: well formed, nothing in them that a person can't type, and no more rights than they need."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from pipeline.build import ROOT, WORKFLOWS, actionlint, words_of_make

# Lines that are neither a word of make nor .ci/run, and why.
OTHERS = {
    "docker build --target polaris --tag polaris:ci .": "the Dockerfile, as others build it",
    "docker build --target embedder --tag polaris-embedder:ci .": "the same",
    "docker run --rm --read-only polaris:ci --help": "and that it runs",
    "sudo apt-get update": "what `make images` says that it needs",
    "sudo apt-get install --yes --no-install-recommends buildah debootstrap debian-archive-keyring": "too",
    'sudo chown --recursive "$(id --user)" .cache/images': "root built them, and somebody else uploads them",
}
_TYPED = re.compile(r'(?:sudo --preserve-env=[A-Z_,]+ )?make ([a-z-]+)(?: [A-Z_]+="?\$?[A-Za-z0-9_./-]*"?)*')


def read(workflow: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(workflow.read_text("utf-8"))
    return loaded


def jobs() -> Iterator[tuple[str, dict[str, Any]]]:
    for workflow in WORKFLOWS:
        for name, job in read(workflow)["jobs"].items():
            yield f"{workflow.name}: {name}", job


def steps() -> Iterator[tuple[str, dict[str, Any]]]:
    for where, job in jobs():
        for step in job.get("steps", []):
            yield where, step


def test_actionlint_finds_nothing() -> None:
    assert not actionlint(WORKFLOWS)


def test_actionlint_would_find_something(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(
        "on: push\njobs:\n  a:\n    runs-on: ubuntu-24.04\n    steps:\n    - run: echo ${{ gitub.sha }}\n"
    )
    assert 'undefined variable "gitub"' in actionlint([wrong])


def test_what_a_workflow_runs_is_a_word_that_anybody_can_type() -> None:
    words, seen = words_of_make(), set()
    for where, step in steps():
        for line in str(step.get("run", "")).splitlines():
            typed = _TYPED.fullmatch(line)
            seen.add(line)
            assert line == ".ci/run" or line in OTHERS or (typed and typed[1] in words), f"{where}: {line}"
    assert OTHERS.keys() <= seen, "a line that no workflow has any more"


def test_every_job_ends_and_has_no_more_rights_than_it_says() -> None:
    for workflow in WORKFLOWS:
        assert read(workflow)["permissions"] == {"contents": "read"}, workflow.name
    for where, job in jobs():
        assert "timeout-minutes" in job or "uses" in job, where
        writes = {right for right, level in job.get("permissions", {}).items() if level == "write"}
        assert where == "release.yml: release" or not writes, where


def test_code_of_a_pull_request_meets_no_secret() -> None:
    for workflow in WORKFLOWS:
        text = workflow.read_text("utf-8")
        assert "pull_request_target" not in text
        triggers = {**read(workflow)}[cast("str", True)]  # YAML 1.1 takes `on` for a truth
        assert "secrets." not in text or "pull_request" not in triggers, workflow.name
    for where, step in steps():
        # What somebody else wrote (a branch's name, a title) is never a part of a command.
        assert "${{" not in str(step.get("run", "")), where
        if str(step.get("uses", "")).startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False, where


def test_a_release_pushes_what_staging_tried() -> None:
    release = read(ROOT / ".github/workflows/release.yml")["jobs"]
    assert release["ci"]["uses"] == "./.github/workflows/ci.yml"
    assert release["release"]["needs"] == "ci"
    runs = [step["run"] for step in release["release"]["steps"] if "run" in step]
    assert runs == ["make release"]  # and builds nothing


def test_every_python_that_is_promised_is_tried() -> None:
    tried = read(ROOT / ".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert tried == ["3.11", "3.12", "3.13", "3.14"]
    assert 'requires-python = ">=3.11"' in (ROOT / "pyproject.toml").read_text("utf-8")


@pytest.mark.parametrize("update", yaml.safe_load((ROOT / ".github/dependabot.yml").read_text())["updates"])
def test_dependabot_looks_where_something_is(update: dict[str, Any]) -> None:
    there = {"github-actions": ".github/workflows/*.yml", "docker": "Dockerfile"}
    assert sorted(update) == ["directory", "package-ecosystem", "schedule"]
    assert update["schedule"]["interval"] in {"daily", "weekly", "monthly"}
    assert list((ROOT / update["directory"].strip("/")).glob(there[update["package-ecosystem"]]))
