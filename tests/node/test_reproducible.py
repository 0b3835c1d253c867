"""The same sources make the same image: only in `make soak`, for it takes minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

from node import images

pytestmark = [pytest.mark.node, pytest.mark.soak]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("target", list(images.TARGETS))
def test_a_second_build_from_nothing_makes_the_same_layers(target: str, tmp_path: Path) -> None:
    first = images.of_polaris(target)
    again = images.from_nothing(target, tmp_path)
    assert images.digests(again) == images.digests(first.archive)
