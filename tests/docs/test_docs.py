"""What the documents say is so: links resolve, manifests are accepted, words of the Makefile exist."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from docs.pages import PAGES, README, ROOT, blocks
from kube.cluster import Cluster
from polaris import crd
from polaris.spec import SPECS, parse_spec
from polaris.status import Reason


def _manifests() -> Iterator[tuple[str, dict[str, object]]]:
    for path in sorted((ROOT / "docs/examples").rglob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text("utf-8")):
            if document and document.get("kind") in SPECS:
                yield str(path.relative_to(ROOT)), document
    for page in PAGES:
        for block in blocks(page, "yaml"):
            for document in yaml.safe_load_all(block):
                if isinstance(document, dict) and document.get("kind") in SPECS:
                    yield str(page.relative_to(ROOT)), document


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8")):
        if not target.startswith(("http:", "https:", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_manifest_in_the_documents_is_one() -> None:
    found = list(_manifests())
    assert len(found) >= 3
    for _, manifest in found:
        parse_spec(SPECS[str(manifest["kind"])], manifest["spec"])


@pytest.mark.kubernetes
def test_every_manifest_in_the_documents_is_accepted_by_the_api_server(cluster: Cluster) -> None:
    cluster.apply("---\n".join(crd.render(kind) for kind in crd.PLURALS))
    cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
    for where, manifest in _manifests():
        metadata = manifest["metadata"]
        assert isinstance(metadata, dict)
        object_ = {**manifest, "metadata": {**metadata, "namespace": "default"}}
        done = cluster.kubectl(
            "create", "--dry-run=server", "-f", "-", input=json.dumps(object_), check=False
        )
        assert done.returncode == 0, f"{where}: {done.stderr}"


def test_every_word_of_make_that_is_mentioned_exists() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    words = set(re.findall(r"^([a-z-]+)(?= |:)[a-z -]*:", makefile, re.MULTILINE)) | {"crds", "docs"}
    for page in PAGES:
        for word in re.findall(r"`make ([a-z-]+)", page.read_text("utf-8")):
            assert word in words, f"{page.name} says 'make {word}'"


def test_the_readme_shows_its_two_commands() -> None:
    commands = "".join(blocks(README, "sh"))
    assert "make up\n" in commands
    assert "make test\n" in commands


def test_no_file_names_this_machine() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    home = str(Path.home())
    for name in files.splitlines():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".yaml", ".toml", ".txt", ".in", ""} and path.is_file():
            text = path.read_text("utf-8", errors="ignore")
            assert home + "/" not in text, f"{name} names {home}"


def test_every_reason_is_explained() -> None:
    _, *tables = re.split(r"^## ", (ROOT / "docs/conditions.md").read_text("utf-8"), flags=re.MULTILINE)
    explained = re.findall(r"^\| `(\w+)` \|", "".join(tables), re.MULTILINE)
    assert sorted(explained) == sorted(reason.value for reason in Reason)
