"""From images to a release, as far as no cluster and no registry is needed; tests/node goes on from there."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from kube import build
from kube.helm import helm
from node.images import TARGETS, name_of
from pipeline.build import ROOT
from polaris import __version__

DIGEST = f"sha256:{'a1' * 32}"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def deliver(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    tools = {"HELM": str(build.binaries(("helm",))["helm"]), "PYTHON": sys.executable}
    environment = {**os.environ, **tools, **variables}
    return subprocess.run(
        [ROOT / ".ci/deliver", *words], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("word", ["", "ship"])
def test_a_step_that_is_none_is_told(word: str) -> None:
    done = deliver(*([word] if word else []))
    assert done.returncode == 1
    assert done.stderr.startswith("which step? package, kind, staging,")


def test_packed_charts_have_the_version_of_the_program(tmp_path: Path) -> None:
    done = deliver("package", DIST=str(tmp_path))
    assert done.returncode == 0, done.stderr
    for chart in ("polaris", "polaris-crds"):
        shown = yaml.safe_load(helm("show", "chart", tmp_path / f"{chart}-{__version__}.tgz").stdout)
        assert (shown["name"], shown["version"], shown["appVersion"]) == (chart, __version__, __version__)


def test_charts_have_the_version_of_the_program_before_they_are_packed_too() -> None:
    for chart in ("polaris", "polaris-crds"):
        written = yaml.safe_load((ROOT / "charts" / chart / "Chart.yaml").read_text("utf-8"))
        assert (written["version"], written["appVersion"]) == (__version__, __version__)


def test_staging_installs_the_images_that_were_built(tmp_path: Path) -> None:
    deliver("package", DIST=str(tmp_path))
    values = f"--values={ROOT / '.ci/staging.yaml'}"
    done = helm("template", "polaris", tmp_path / f"polaris-{__version__}.tgz", values)
    pods = [
        each["spec"]["template"]["spec"]
        for each in yaml.safe_load_all(done.stdout)
        if "template" in (each or {}).get("spec", {})
    ]
    containers = [container for pod in pods for container in pod["containers"]]
    assert {f"docker.io/library/{each['image']}" for each in containers} == set(map(name_of, TARGETS))
    assert {each["imagePullPolicy"] for each in containers} == {"IfNotPresent"}


def test_a_released_chart_names_its_images_by_digest(tmp_path: Path) -> None:
    chart = tmp_path / "polaris"
    shutil.copytree(ROOT / "charts/polaris", chart)
    values = chart / "values.yaml"
    wanted = {"image.repository": "registry.test/polaris", "image.digest": DIGEST}
    values.write_text(script("set_values").with_values(values.read_text("utf-8"), wanted), "utf-8")
    done = helm("template", "polaris", chart, "--show-only=templates/operator.yaml")
    assert f"registry.test/polaris@{DIGEST}" in done.stdout


def test_a_value_that_the_chart_has_not_is_no_value() -> None:
    with pytest.raises(KeyError, match=r"image\.digets"):
        script("set_values").with_values("image:\n  digest: ''\n", {"image.digets": DIGEST})


def test_what_is_released_is_what_the_tag_says() -> None:
    done = deliver("release", REGISTRY="registry.test/x", VERSION="v9.9.9")
    assert done.returncode == 1
    assert done.stderr == f"this is to be 9.9.9, and pyproject.toml says {__version__}\n"


def test_without_images_it_is_said_who_makes_them(tmp_path: Path) -> None:
    done = deliver("kind", IMAGES=str(tmp_path), PATH=f"{_programs(tmp_path, 'kind')}:{os.environ['PATH']}")
    assert "there is no archive of polaris" in done.stderr


def _programs(folder: Path, name: str) -> Path:
    """A program of that name that does nothing: what is looked at comes after it."""
    (folder / name).symlink_to("/bin/true")
    return folder


def test_actions_are_pinned_to_the_commit_that_their_repository_tells(tmp_path: Path) -> None:
    pin = script("pin_actions")
    repository = tmp_path / "owner" / "action"
    git = ["git", "-C", str(repository), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "init", "--quiet", repository], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "one"], check=True)
    subprocess.run([*git, "tag", "-a", "v1", "-m", "one"], check=True)
    commit = subprocess.run(
        [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()

    def asked(name: str, version: str) -> str:
        answer: str = pin.asked(name, version, f"file://{tmp_path}")
        return answer

    once = pin.pinned("    - uses: owner/action@v1\n    - uses: ./own\n", asked)
    assert once == f"    - uses: owner/action@{commit} # v1\n    - uses: ./own\n"
    assert pin.pinned(once, asked) == once
    with pytest.raises(SystemExit, match="owner/action has no v2"):
        asked("owner/action", "v2")
