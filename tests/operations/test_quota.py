"""How many indexes a namespace may have, kept by Kubernetes: as the page on operations says."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import yaml

from docs.pages import block
from kube.cluster import Cluster
from mission.system import get, wait_for
from operations.site import PAGE, index_manifest
from polaris import crd

pytestmark = pytest.mark.kubernetes


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """One of its own."""
    cluster.install_crds("---\n".join(crd.render(kind) for kind in crd.PLURALS))
    cluster.kubectl("create", "namespace", "quota")
    yield "quota"
    cluster.kubectl("delete", "namespace", "quota", "--wait=false")


def test_the_sixth_index_of_a_namespace_is_refused_when_it_is_applied(
    cluster: Cluster, namespace: str
) -> None:
    quota = yaml.safe_load(block(PAGE, "yaml", "ResourceQuota"))
    quota["metadata"]["namespace"] = namespace
    cluster.apply(json.dumps(quota))
    limit = int(quota["spec"]["hard"]["count/polarisindexes.polaris.dev"])

    def counted() -> bool:
        used = get(cluster, "resourcequota", namespace, "polaris").get("status", {}).get("used", {})
        return "count/polarisindexes.polaris.dev" in used

    # The controller looks for new kinds of objects every 30 s.
    wait_for("the quota to count indexes", counted, seconds=90)

    def applied(name: str) -> tuple[int, str]:
        manifest = index_manifest(name)
        manifest["metadata"]["namespace"] = namespace
        done = cluster.kubectl("create", "-f", "-", input=json.dumps(manifest), check=False)
        return done.returncode, done.stderr

    assert [applied(f"index{number}")[0] for number in range(limit)] == [0] * limit
    code, said = applied("one-more")
    assert code == 1
    assert "exceeded quota: polaris" in said
    assert "used: count/polarisindexes.polaris.dev=5" in said
