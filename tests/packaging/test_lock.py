"""What is installed is pinned, and what is pinned is what pyproject.toml asks for."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PINNED = sorted(ROOT.glob("requirements*.txt"))


def test_make_lock_would_change_nothing(tmp_path: Path) -> None:
    """Each file is made anew in a copy; a pin that still serves is kept, whatever was released since."""
    for source in (ROOT / "Makefile", ROOT / "pyproject.toml", *ROOT.glob("requirements*")):
        shutil.copy2(source, tmp_path)
    uv = Path(sys.executable).with_name("uv")
    # The uv that is here is not to be installed anew.
    subprocess.run(["make", "--old-file", uv, "lock", f"UV={uv}"], cwd=tmp_path, check=True)
    changed = [file.name for file in PINNED if file.read_text() != (tmp_path / file.name).read_text()]
    assert changed == []


@pytest.mark.parametrize("file", PINNED, ids=lambda file: file.stem)
def test_each_pin_has_a_version_and_hashes_and_names_no_host(file: Path) -> None:
    text = file.read_text("utf-8")
    pins = re.split(r"^(?=\S)", text, flags=re.MULTILINE)[1:]
    assert pins
    assert [
        p.splitlines()[0] for p in pins if not re.match(r"[a-z0-9-]+(\[.*\])?==\S+.* \\\n +--hash=", p)
    ] == []
    assert "://" not in text
