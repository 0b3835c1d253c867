"""The data folder of `polaris up`: its manifests, its handbook, and how it is removed."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest
import yaml

from cli.program import here
from polaris.errors import InvalidManifest, Prerequisite
from polaris.spec import PolarisDatabaseSpec, PolarisIndexSpec, parse_spec
from polaris_cli.load.document import Line, Options
from polaris_cli.load.files import documents
from polaris_cli.up import folder as layout
from polaris_cli.up.folder import Addresses, DataFolder

HERE = Addresses("127.0.0.1", 54321, "http://127.0.0.1:8200", "a-role")


def made(root: Path) -> DataFolder:
    folder = DataFolder(root)
    folder.make()
    return folder


def test_the_manifests_that_come_with_it_are_valid() -> None:
    database, index = (yaml.safe_load(layout.example(f"{name}.yaml")) for name in ("database", "handbook"))
    parse_spec(PolarisDatabaseSpec, database["spec"])
    parse_spec(PolarisIndexSpec, index["spec"])
    assert (index["metadata"]["namespace"], index["metadata"]["name"]) == (layout.NAMESPACE, layout.INDEX)


def test_the_folder_is_for_its_owner_only(open_path: Path) -> None:
    folder = made(open_path / "data")
    assert not stat.S_IMODE(folder.root.stat().st_mode) & 0o066
    assert not stat.S_IMODE(folder.manifests.stat().st_mode) & 0o077


def test_a_folder_that_cannot_be_made_is_said_with_what_to_do(open_path: Path) -> None:
    (open_path / "file").write_text("")
    with pytest.raises(Prerequisite, match="can't be used: Not a directory") as raised:
        made(open_path / "file" / "data")
    assert "POLARIS_DATA" in raised.value.remedy


def test_addresses_of_this_start_are_written_and_changes_of_people_are_kept(open_path: Path) -> None:
    folder = made(open_path / "data")
    layout.write_manifests(folder, HERE)
    file = folder.manifests / "database.yaml"
    edited = yaml.safe_load(file.read_text())
    assert edited["spec"]["port"] == HERE.port
    assert edited["spec"]["credentials"]["vault"]["auth"]["appRole"]["roleId"] == "a-role"
    edited["spec"]["allowedNamespaces"] = ["team-a"]
    file.write_text(yaml.safe_dump(edited))
    layout.write_manifests(folder, Addresses("127.0.0.1", 1, "http://127.0.0.1:2", "another"))
    assert yaml.safe_load(file.read_text())["spec"]["allowedNamespaces"] == ["team-a"]
    assert yaml.safe_load(file.read_text())["spec"]["port"] == 1


def test_a_manifest_that_is_right_already_is_left_as_it_is(open_path: Path) -> None:
    folder = made(open_path / "data")
    layout.write_manifests(folder, HERE)
    before = (folder.manifests / "database.yaml").stat().st_mtime_ns
    layout.write_manifests(folder, HERE)
    assert (folder.manifests / "database.yaml").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "text", ["", "a: [", "kind: PolarisDatabase", "spec: {credentials: {secretRef: {}}}"]
)
def test_a_database_manifest_that_cannot_be_used_is_refused(text: str) -> None:
    with pytest.raises(InvalidManifest, match="remove it, and it is made anew"):
        layout.with_addresses(text, HERE)


def test_the_first_index_comes_once_and_stays_away_when_it_was_removed(open_path: Path) -> None:
    folder = made(open_path / "data")
    layout.write_manifests(folder, HERE)
    index = folder.manifests / "handbook.yaml"
    assert index.exists()
    folder.loaded.write_text("some handbook")
    index.unlink()
    layout.write_manifests(folder, HERE)
    assert not index.exists()


def test_the_handbook_is_whole_in_both_languages() -> None:
    pages = [item for item in documents([layout.handbook()], Options()) if isinstance(item, Line)]
    by_language = {
        language: [page for page in pages if f'"lang":"{language}"'.encode() in page.data]
        for language in ("en", "pt")
    }
    assert len(by_language["en"]) == len(by_language["pt"]) >= 12
    assert len(pages) == sum(map(len, by_language.values()))
    assert all(b'"title":' in page.data for page in pages)
    assert len(layout.handbook_digest()) == 64


def test_the_handbook_names_only_commands_that_there_are() -> None:
    text = " ".join(page.read_text("utf-8") for page in layout.handbook().rglob("*.md"))
    named = set(re.findall(r"`polaris ([a-z]+)", text))
    assert named
    assert all(here(name, "--help").code == 0 for name in named)


def test_down_removes_a_data_folder_and_nothing_else(open_path: Path) -> None:
    folder = made(open_path / "data")
    (folder.root / "up.lock").touch()
    (open_path / "other").mkdir()
    assert here("down", "--yes", "--data", folder.root).code == 0
    assert not folder.root.exists()
    refused = here("down", "--yes", "--data", open_path / "other")
    assert refused.code == 1
    assert "is no data folder of 'polaris up'" in refused.err
    assert (open_path / "other").exists()
    assert "nothing to remove" in here("down", "--data", open_path / "nowhere").out


def test_down_asks_and_without_an_answer_does_nothing(
    open_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made(open_path / "data")
    (folder.root / "up.lock").touch()
    with Path("/dev/null").open() as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        done = here("down", "--data", folder.root)
    assert done.code == 1
    assert folder.root.exists()
