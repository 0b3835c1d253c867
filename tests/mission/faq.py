"""The Debian FAQ in Portuguese, from Debian's package `debian-faq-pt`: fetched, never committed.

Each section becomes a document (its text without its heading), and the headings that are questions
become the questions, each with the one section that answers it.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import lxml.html

PACKAGE = "debian-faq-pt"


@dataclass(frozen=True)
class Section:
    """A section of the FAQ."""

    id: str
    heading: str
    text: str


def _cache() -> Path:
    base = os.environ.get("POLARIS_CACHE") or Path(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "polaris"
    )
    return Path(base) / "texts"


def fetch() -> Path:
    """Return the folder of the FAQ's pages, fetched by apt at the first call.

    Raises CalledProcessError where apt has no such package; nobody needs to be root for this.
    """
    target = _cache() / PACKAGE
    if target.exists():
        return target / "usr/share/doc/debian/FAQ/pt"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        if os.geteuid() == 0 and not list(Path("/var/lib/apt/lists").glob("*Packages*")):
            subprocess.run(["apt-get", "update", "-qq"], check=True, capture_output=True)
        subprocess.run(["apt-get", "download", "-qq", PACKAGE], cwd=folder, check=True, capture_output=True)
        (package,) = Path(folder).glob("*.deb")
        subprocess.run(["dpkg-deb", "--extract", package, f"{folder}/out"], check=True, capture_output=True)
        Path(folder, "out").rename(target)
    return target / "usr/share/doc/debian/FAQ/pt"


def sections() -> list[Section]:
    """Return all sections that hold text."""
    found = []
    for page in sorted(fetch().glob("*.html")):
        root = lxml.html.parse(str(page)).getroot()
        for section in root.xpath('//div[@class="section"]'):
            (title,) = section.xpath('./div[@class="titlepage"]')
            (anchor,) = title.xpath(".//a/@id")[:1]
            heading = re.sub(r"^[\d.]+\s*", "", " ".join(title.text_content().split()))
            paragraphs = [
                " ".join(part.text_content().split())
                for part in section
                if part is not title and part.get("class") != "section"
            ]
            text = "\n\n".join(filter(None, paragraphs))
            if text:
                found.append(Section(f"{page.name.split('.')[0]}/{anchor}", heading, text))
    return found


def questions(of: Sequence[Section]) -> list[Section]:
    """Return the sections whose heading is a question."""
    return [section for section in of if section.heading.endswith("?")]


def ndcg(ranked: Sequence[str], relevant: str, k: int = 10) -> float:
    """Return nDCG@k where one document is relevant: 1/log2(rank + 1), or 0."""
    unique = list(dict.fromkeys(ranked))[:k]
    return 1 / math.log2(unique.index(relevant) + 2) if relevant in unique else 0.0
