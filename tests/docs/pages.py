"""The documents that a reader sees, and the blocks of code in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def blocks(page: Path, language: str) -> list[str]:
    """Return the blocks of code of a page that are in a language, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def block(page: Path, language: str, holding: str) -> str:
    """Return the one block that holds a text."""
    (found,) = [block for block in blocks(page, language) if holding in block]
    return found
