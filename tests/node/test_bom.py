"""The bill of materials of each image: whole, licensed by what we accept, and what the lock says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cyclonedx.model.bom import Bom

from node import bom, images

pytestmark = pytest.mark.node

ROOT = Path(__file__).parents[2]
REQUIREMENTS = {
    "polaris": "requirements.txt",
    "embedder": "requirements-embedder.txt",
    "demo": "requirements-demo.txt",
}
# What an organisation that runs POLARIS may have to refuse: source to be given to users of a network service.
REFUSED = re.compile(r"AGPL|Affero|SSPL|BUSL|Commons Clause|not said")


@pytest.fixture(params=list(images.TARGETS))
def target(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def bill(target: str, request: pytest.FixtureRequest) -> Bom:
    image: images.Image = request.getfixturevalue(f"{target}_archive")
    return bom.of(image.archive)


def test_each_part_has_a_version_and_a_licence(bill: Bom) -> None:
    assert len(bill.components) > 100
    assert [str(part.purl) for part in bill.components if not (part.version and part.licenses)] == []


def test_no_licence_asks_more_than_an_organisation_can_give(bill: Bom) -> None:
    assert [words for words in bom.licences(bill) if REFUSED.search(words)] == []


def test_what_is_installed_is_what_the_lock_says(bill: Bom, target: str) -> None:
    pinned = dict(
        re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / REQUIREMENTS[target]).read_text(), re.MULTILINE)
    )
    installed = {
        part.purl.name: part.version
        for part in bill.components
        if part.purl and part.purl.type == "pypi" and part.purl.name != "polaris-rag"
    }
    assert installed
    assert {name: pinned.get(name) for name in installed} == installed


def test_the_same_image_has_the_same_bill(target: str, request: pytest.FixtureRequest) -> None:
    image: images.Image = request.getfixturevalue(f"{target}_archive")
    first, second = (bom.text(bom.of(image.archive)) for _ in range(2))
    assert first == second
    assert '"specVersion": "1.6"' in first
