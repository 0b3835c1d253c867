"""What the operator's tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kube.cluster import Cluster
from scenes.cluster import install
from scenes.folder import FolderScene


@pytest.fixture(scope="session")
def installed_cluster(cluster: Cluster) -> Cluster:
    """The API server with our CRDs, and the operator's ServiceAccount with its rights."""
    install(cluster)
    return cluster


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[FolderScene]:
    """The operator over a folder of manifests."""
    made = FolderScene(tmp_path)
    yield made
    made.stop()
