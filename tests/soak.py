"""How long the tests go on that could go on for ever: briefly in `make test`, long in `make soak`."""

from __future__ import annotations

import os

SOAKING = os.environ.get("POLARIS_SOAK") == "1"


def times(brief: int, full: int) -> int:
    """Return how often something is tried; tests that ask have the marker `soak`."""
    return full if SOAKING else brief
