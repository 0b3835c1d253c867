"""Servers and folders of their own for what operations do to them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from parts import servers


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that a server's user may pass through."""
    with servers.open_folder() as made:
        yield made
