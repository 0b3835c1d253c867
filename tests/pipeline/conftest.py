from __future__ import annotations

from pathlib import Path

import pytest

from kube import build
from pipeline.build import ACTIONLINT, FLUX, TOOLS

# Who asks what is built here.
FOLDERS = {Path(__file__).parent.parent / name for name in ("compose", "gitops", "pipeline")}


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build before the first test: no test's timeout is for that."""
    if session.config.option.collectonly or not any(item.path.parent in FOLDERS for item in session.items):
        return
    capture = session.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        for module in (ACTIONLINT, TOOLS, FLUX):
            build.binaries(module=module)
