"""From packed charts to a rollback by the words of the pipeline, in a cluster whose pods run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from kube import build
from node import images
from node.node import Given, Node

pytestmark = pytest.mark.node

DELIVER = images.ROOT / ".ci/deliver"
NAMESPACE = "delivered"
# As .ci/staging.yaml, in a cluster that may have no StorageClass.
VALUES = {"demo": {"enabled": True, "storage": {"emptyDir": True}}}


@pytest.fixture
def cluster(
    node: Node | Given,
    polaris_image: images.Image,
    embedder_image: images.Image,
    demo_image: images.Image,
) -> Iterator[Node | Given]:
    """The cluster with the images, and afterwards without what was delivered."""
    del polaris_image, embedder_image, demo_image  # They are there, under the names that the chart asks for.
    # Definitions that other tests brought belong to no release.
    crds = images.ROOT / "charts/polaris-crds"
    taken = ("--create-namespace", "--take-ownership")
    node.helm("upgrade", "--install", "polaris-crds", crds, "-n", NAMESPACE, *taken)
    yield node
    node.kubectl("delete", "pidx,pgdb", "--all", "-n", NAMESPACE, "--timeout=60s", check=False)
    for release in ("polaris", "polaris-crds"):
        node.helm("uninstall", release, "-n", NAMESPACE, "--ignore-not-found", "--wait")
    node.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=false")


def test_the_words_of_the_pipeline_install_upgrade_ask_and_roll_back(
    cluster: Node | Given, tmp_path: Path
) -> None:
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump(VALUES), "utf-8")
    environment = os.environ | {
        "KUBECONFIG": str(cluster.kubeconfig),
        "NAMESPACE": NAMESPACE,
        "DIST": str(tmp_path),
        "VALUES": str(values),
        "HELM": str(build.binaries(("helm",))["helm"]),
        "KUBECTL": str(Path(sys.executable).parent / "kubectl"),
        "PYTHON": sys.executable,
    }
    said: dict[str, list[str]] = {}
    with cluster.network():
        for word in ("package", "staging", "smoke", "migrate", "smoke", "rollback", "smoke"):
            done = subprocess.run(
                [DELIVER, word], env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{word}\n{done.stdout}{done.stderr}"
            said.setdefault(word, []).append(done.stdout)
    assert "polarisindex.polaris.dev/demo condition met" in said["staging"][0]
    assert "main: catalog" in said["migrate"][0]
    assert all("Succeeded" in told for told in said["smoke"])
