"""`polaris up`, once for all tests of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.up import Up
from parts import servers


@pytest.fixture(scope="session")
def up() -> Iterator[Up]:
    """A first start on an empty data folder; tests that stop it start it again."""
    with servers.open_folder() as folder:
        running = Up(folder / "data")
        try:
            running.start()
            yield running
        finally:
            running.end()


@pytest.fixture(scope="module")
def open_folder() -> Iterator[Path]:
    """Such a folder as `open_path`, for all tests of a module."""
    with servers.open_folder() as folder:
        yield folder


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A folder that PostgreSQL's user may pass through, where `tmp_path` lets only its owner in."""
    with servers.open_folder() as folder:
        yield folder
