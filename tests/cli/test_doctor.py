"""`polaris doctor`: what is missing is named, with what to do."""

from __future__ import annotations

import builtins
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from cli.program import here
from polaris_cli import checks
from polaris_cli.checks import Finding, Verdict


def findings(*arguments: str | Path, **variables: str) -> dict[str, Finding]:
    done = here("doctor", "-o", "json", *arguments, variables=variables)
    found = [Finding(**{**each, "verdict": Verdict(each["verdict"])}) for each in json.loads(done.out)]
    missing = [each for each in found if each.verdict is Verdict.MISSING]
    assert done.code == (1 if missing else 0)
    assert all(each.remedy for each in missing)
    return {each.about: each for each in found}


def test_this_machine_is_well(tmp_path: Path) -> None:
    found = findings("--data", tmp_path / "data")
    for about in ("python", "packages: local", "packages: operator", "data"):
        assert found[about].verdict is Verdict.OK, found[about]


def test_a_data_folder_below_a_file_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = findings("--data", tmp_path / "file" / "data")
    assert found["data"].verdict is Verdict.MISSING
    assert "POLARIS_DATA" in found["data"].remedy


def test_an_absent_cluster_or_service_is_only_a_note(tmp_path: Path) -> None:
    found = findings("--data", tmp_path, POLARIS_SERVER="http://127.0.0.1:9")
    assert found["cluster"].verdict is Verdict.NOTE
    assert found["service"].verdict is Verdict.NOTE
    assert found["database login"].verdict is Verdict.NOTE


@pytest.mark.parametrize("content", ["", "contexts: 3", "current-context: x\ncontexts: []\nclusters: []"])
def test_a_kubeconfig_without_a_cluster_is_said(tmp_path: Path, content: str) -> None:
    (tmp_path / "config").write_text(content)
    found = findings(KUBECONFIG=str(tmp_path / "config"))
    assert "names no current cluster" in found["cluster"].sentence


def test_a_cluster_that_does_not_answer_is_named(tmp_path: Path) -> None:
    (tmp_path / "config").write_text(
        "current-context: x\n"
        "contexts: [{name: x, context: {cluster: y}}]\n"
        "clusters: [{name: y, cluster: {server: 'https://127.0.0.1:9'}}]\n"
    )
    found = findings(KUBECONFIG=str(tmp_path / "config"))
    assert found["cluster"].sentence.startswith("https://127.0.0.1:9, of ")


def test_the_login_of_the_service_is_looked_at(tmp_path: Path) -> None:
    assert "No such file" in findings(POLARIS_DATABASE_SECRET=str(tmp_path))["database login"].sentence
    login = {"username": "u", "password": "p", "host": "127.0.0.1", "dbname": "d", "sslmode": "disable"}
    for key, value in login.items():
        (tmp_path / key).write_text(value)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        (tmp_path / "port").write_text(f"{server.getsockname()[1]}\n")
        assert findings(POLARIS_DATABASE_SECRET=str(tmp_path))["database login"].verdict is Verdict.OK
    (tmp_path / "port").write_text("9")
    assert findings(POLARIS_DATABASE_SECRET=str(tmp_path))["database login"].verdict is Verdict.MISSING


def test_a_package_that_is_missing_hides_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name in ("psutil", "httpx"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    found = findings()
    assert "not everything was looked at" in found["packages"].sentence
    assert found["python"].verdict is Verdict.OK


def test_an_extra_that_lacks_packages_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    required = ["typer", "no-such-package>=1 ; extra == 'local'", "pyyaml ; extra == 'local'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda _: required)
    [finding] = checks.packages()
    assert finding.sentence == "not installed: no-such-package"
    assert finding.remedy == "pip install 'polaris-rag[local]'"


def test_people_get_a_list_with_what_to_do(tmp_path: Path) -> None:
    done = here("doctor", "--data", tmp_path)
    assert "ok      python: Python 3." in done.out
    assert "        → only for life in a cluster: set KUBECONFIG" in done.out
