import subprocess
import threading
from pathlib import Path

import pytest

from kube.build import BuildError, Module, _numbers, binaries

pytestmark = pytest.mark.kubernetes


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("POLARIS_CACHE", str(folder))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    return folder


@pytest.fixture
def module(tmp_path: Path) -> Module:
    """A Go module that compiles at once, and needs no other."""
    folder = tmp_path / "module"
    (folder / "hello").mkdir(parents=True)
    (folder / "go.mod").write_text("module test\n\ngo 1.21\n")
    (folder / "go.sum").write_text("")
    (folder / "hello" / "main.go").write_text('package main\n\nfunc main() { println("hello") }\n')
    return Module(folder, {"hello": "test/hello", "broken": "test/broken"})


def test_what_was_built_runs_and_is_not_built_again(module: Module, cache: Path) -> None:
    said: list[str] = []
    path = binaries(["hello"], module=module, tell=said.append)["hello"]
    assert path.is_relative_to(cache)
    assert subprocess.run([path], capture_output=True, check=True).stderr == b"hello\n"
    assert [line for line in said if line.startswith("built hello in ")]
    said.clear()
    assert binaries(["hello"], module=module, tell=said.append)["hello"] == path
    assert said == []


def test_two_builders_at_once_build_once(module: Module) -> None:
    said: list[str] = []
    builders = [
        threading.Thread(target=lambda: binaries(["hello"], module=module, tell=said.append))
        for _ in range(2)
    ]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert len([line for line in said if line.startswith("built hello in ")]) == 1


def test_a_build_that_fails_tells_what_go_said_and_leaves_nothing(module: Module, cache: Path) -> None:
    with pytest.raises(BuildError, match=r"building broken failed(?s:.)*test/broken"):
        binaries(["broken"], module=module, tell=lambda _: None)
    assert [path.name for path in cache.rglob("*") if path.is_file()] == ["build.lock"]


def test_binaries_that_the_user_has_are_taken(
    module: Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assets = tmp_path / "assets"
    assets.mkdir()
    (assets / "broken").touch(mode=0o755)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
    there = binaries(module=module, tell=lambda _: None)
    assert there["broken"] == assets / "broken"
    assert subprocess.run([there["hello"]], capture_output=True, check=True).stderr == b"hello\n"


def test_another_go_sum_is_another_folder(module: Module) -> None:
    before = module.key()
    assert module.key() == before
    (module.folder / "go.sum").write_text("example.org/other v1.0.0 h1:AA=\n")
    assert module.key() != before


def test_an_unknown_command_is_refused_with_those_that_there_are(module: Module) -> None:
    with pytest.raises(BuildError, match="no such command: kubelet; there are: hello, broken"):
        binaries(["kubelet"], module=module)


@pytest.mark.parametrize(
    ("found", "enough"),
    [("1.26.0", True), ("1.27", True), ("1.26.8 X:nocoverageredesign", True), ("1.9.7", False), ("", False)],
)
def test_a_go_that_is_too_old_is_not_enough(found: str, enough: bool) -> None:
    assert (_numbers(found) >= _numbers("1.26.0")) == enough
