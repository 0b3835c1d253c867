from __future__ import annotations

from pathlib import Path

import pytest

from kube import build
from pipeline.build import TOOLS

HERE = Path(__file__).parent


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build before the first test: no test's timeout is for that."""
    if session.config.option.collectonly or not any(HERE in item.path.parents for item in session.items):
        return
    capture = session.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        build.binaries(module=TOOLS)
