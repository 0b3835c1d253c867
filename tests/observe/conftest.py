"""One running system for all tests of what is observed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from observe.running import Running, running
from parts import servers


@pytest.fixture(scope="package")
def system() -> Iterator[Running]:
    """A system that runs, and has done a little of everything."""
    with servers.open_folder() as folder, running(folder) as made:
        yield made
