from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from chart.rendered import CHART, NAMESPACE
from kube.cluster import Cluster

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def judge(cluster: Cluster) -> Iterator[Cluster]:
    """An API server that knows all that the chart can make, with the namespace of the renderings.

    The namespace must hold to restricted Pod Security, or there are warnings.
    """
    cluster.kubectl("create", "namespace", NAMESPACE)
    cluster.kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/warn=restricted")
    # A pod is looked at together with its ServiceAccount, which is not there in a dry run.
    for release in ("polaris", "another"):
        cluster.kubectl("create", "serviceaccount", f"{release}-test", "-n", NAMESPACE)
    for kinds in (HERE / "others.yaml", CHART / "crds"):
        cluster.kubectl("apply", "-f", kinds)
        cluster.kubectl("wait", "--for=condition=Established", "-f", kinds, "--timeout=60s")
    yield cluster
    cluster.kubectl("delete", "-f", HERE / "others.yaml", "--wait=false")
    cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


@pytest.fixture(scope="package")
def bare() -> Iterator[Cluster]:
    """An API server to which nothing comes but by releases: those of the examples' namespaces."""
    with Cluster() as running:
        for namespace in ("rag", "team-a"):
            running.kubectl("create", "namespace", namespace)
        yield running
