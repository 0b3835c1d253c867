"""Releases of both charts on a real API server: installed, upgraded, rolled back, uninstalled.

The server is of these tests' own: what other tests bring to the shared one belongs to no release. It has no
node, so nobody waits for pods.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from chart.rendered import CHART, CRDS, ROOT
from kube.cluster import Cluster

pytestmark = pytest.mark.kubernetes

INDEX = ROOT / "docs/examples/cluster/index.yaml"
KINDS = ",".join(
    f"{kind}s"
    for kind in (
        *("deployment", "service", "serviceaccount", "configmap", "job"),
        *("networkpolicie", "poddisruptionbudget", "horizontalpodautoscaler"),
    )
)


@pytest.fixture
def crds(bare: Cluster) -> Iterator[Cluster]:
    """With the CRDs of a release, however they came there before; they stay."""
    bare.helm("upgrade", "--install", "polaris-crds", CRDS, "-n", "rag", "--take-ownership")
    bare.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
    yield bare
    for release in ("polaris", "polaris-crds"):
        bare.helm("uninstall", release, "-n", "rag", "--ignore-not-found", "--wait")
    bare.kubectl("delete", "-f", INDEX, "--ignore-not-found")


def get(cluster: Cluster, what: str, namespace: str = "rag") -> Any:
    return json.loads(cluster.kubectl("get", what, "-n", namespace, "-o", "json").stdout)


def names(cluster: Cluster, namespace: str = "rag") -> set[str]:
    """What stands in a namespace, but for what is in every one."""
    found = cluster.kubectl("get", KINDS, "-n", namespace, "-o", "name").stdout.split()
    return set(found) - {"serviceaccount/default", "configmap/kube-root-ca.crt"}


# The CRDs


def with_another_field(folder: Path) -> Path:
    """The chart of a later version, whose PolarisIndex has a field more."""
    later = folder / "polaris-crds"
    shutil.copytree(CRDS, later)
    file = later / "files" / "polarisindexes.yaml"
    crd = yaml.safe_load(file.read_text("utf-8"))
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec["properties"]["motto"] = {"type": "string"}
    file.write_text(yaml.safe_dump(crd), "utf-8")
    return later


def motto(cluster: Cluster) -> str | None:
    """Write a motto into the index, and return what the API server keeps of it."""
    patch = json.dumps({"spec": {"motto": "festina lente"}})
    cluster.kubectl("patch", "pidx/handbook", "-n", "team-a", "--type=merge", "-p", patch)
    kept: str | None = get(cluster, "pidx/handbook", "team-a")["spec"].get("motto")
    return kept


def test_helm_upgrades_crds_and_an_uninstall_keeps_them_and_all_objects(
    crds: Cluster, tmp_path: Path
) -> None:
    crds.kubectl("apply", "-f", INDEX)
    uid = get(crds, "pidx/handbook", "team-a")["metadata"]["uid"]
    assert motto(crds) is None
    crds.helm("upgrade", "polaris-crds", with_another_field(tmp_path), "-n", "rag")
    assert motto(crds) == "festina lente"

    crds.helm("uninstall", "polaris-crds", "-n", "rag")
    assert get(crds, "pidx/handbook", "team-a")["metadata"]["uid"] == uid

    crds.helm("install", "polaris-crds", CRDS, "-n", "rag")  # what was kept is taken over
    assert get(crds, "pidx/handbook", "team-a")["metadata"]["uid"] == uid
    assert motto(crds) is None


def owner(cluster: Cluster) -> str | None:
    """The release that a CRD belongs to."""
    annotations = get(cluster, "crd/polarisindexes.polaris.dev")["metadata"].get("annotations", {})
    found: str | None = annotations.get("meta.helm.sh/release-name")
    return found


def test_crds_that_came_with_the_other_chart_are_taken_over(crds: Cluster) -> None:
    # helm 4 applies what stands in crds/ over what is there, as the same manager: it is nobody's then.
    crds.helm("uninstall", "polaris-crds", "-n", "rag")
    crds.helm("install", "polaris", CHART, "-n", "rag")
    assert owner(crds) is None
    crds.kubectl("apply", "-f", INDEX)
    uid = get(crds, "pidx/handbook", "team-a")["metadata"]["uid"]
    refused = crds.helm("install", "polaris-crds", CRDS, "-n", "rag", check=False)
    assert "invalid ownership metadata" in refused.stderr

    crds.helm("install", "polaris-crds", CRDS, "-n", "rag", "--take-ownership")
    crds.helm("upgrade", "polaris", CHART, "-n", "rag")
    assert owner(crds) == "polaris-crds"
    assert get(crds, "pidx/handbook", "team-a")["metadata"]["uid"] == uid


def test_a_release_that_skips_the_crds_leaves_them_alone(crds: Cluster, tmp_path: Path) -> None:
    crds.helm("upgrade", "polaris-crds", with_another_field(tmp_path), "-n", "rag")
    crds.helm("install", "polaris", CHART, "-n", "rag", "--skip-crds")
    crds.kubectl("apply", "-f", INDEX)
    assert motto(crds) == "festina lente"
    assert owner(crds) == "polaris-crds"


# The chart


def test_a_release_is_installed_upgraded_rolled_back_and_uninstalled(crds: Cluster) -> None:
    crds.helm("install", "polaris", CHART, "-n", "rag", "--skip-crds")
    first = names(crds)
    uid = get(crds, "deployment/polaris-service")["metadata"]["uid"]
    crds.kubectl("apply", "-f", INDEX)

    def service() -> tuple[str, int]:
        found = get(crds, "deployment/polaris-service")
        return found["metadata"]["uid"], found["spec"]["replicas"]

    more = ("--set=service.replicas=3", "--set=networkPolicy.enabled=true", "--set=settings.max_k=50")
    crds.helm("upgrade", "polaris", CHART, "-n", "rag", *more)
    assert service() == (uid, 3)
    assert names(crds) - first >= {
        "configmap/polaris-settings",
        "networkpolicy.networking.k8s.io/polaris-embedder",
    }

    crds.helm("rollback", "polaris", "1", "-n", "rag")
    assert service() == (uid, 2)
    assert names(crds) == first

    # Once somebody else has chosen the number of pods, as an autoscaler does, helm leaves it alone.
    crds.kubectl("scale", "deployment/polaris-service", "-n", "rag", "--replicas=7")
    scaled = ("--set=service.autoscaling.enabled=true", "--set=service.autoscaling.minReplicas=3")
    for level in ("info", "debug"):
        crds.helm("upgrade", "polaris", CHART, "-n", "rag", *scaled, f"--set=logLevel={level}")
        assert service() == (uid, 7)

    crds.helm("uninstall", "polaris", "-n", "rag", "--wait")
    assert names(crds) == set()
    assert not left_in_the_cluster(crds)
    assert get(crds, "pidx/handbook", "team-a")


def released(folder: Path, version: str, digest: str) -> Path:
    """The chart as a release publishes it: with its image's digest among its values."""
    chart = folder / version / "polaris"
    shutil.copytree(CHART, chart)
    values, about = chart / "values.yaml", chart / "Chart.yaml"
    values.write_text(
        values.read_text("utf-8").replace('digest: ""', f'digest: "sha256:{digest}"', 1), "utf-8"
    )
    about.write_text(re.sub(r"(?m)^version: .*$", f"version: {version}", about.read_text("utf-8")), "utf-8")
    return chart


def test_an_upgrade_keeps_what_was_set_and_takes_the_new_version_s_image(
    crds: Cluster, tmp_path: Path
) -> None:
    first, second = (released(tmp_path, f"0.{n}.0", digit * 64) for n, digit in ((1, "a"), (2, "b")))
    crds.helm("install", "polaris", first, "-n", "rag", "--skip-crds", "--set=service.replicas=3")
    (flag,) = set(re.findall(r"--\S*reuse-values", (ROOT / "docs/install.md").read_text("utf-8")))
    crds.helm("upgrade", "polaris", second, "-n", "rag", flag)
    spec = get(crds, "deployment/polaris-service")["spec"]
    assert spec["replicas"] == 3
    assert spec["template"]["spec"]["containers"][0]["image"] == f"polaris@sha256:{'b' * 64}"


def test_names_that_are_long_or_alike_are_no_one_s_but_a_release_s_own(crds: Cluster) -> None:
    long = "n" * 55
    crds.helm("install", "polaris", CHART, "-n", long, "--create-namespace", "--skip-crds")
    crds.helm("uninstall", "polaris", "-n", long, "--wait")
    alone = ("--skip-crds", "--create-namespace", "--set=operator.enabled=false")
    alike = (("polaris", "rag-second"), ("second-polaris", "rag"))
    for release, namespace in alike:
        crds.helm("install", release, CHART, "-n", namespace, *alone)
    for release, namespace in alike:
        crds.helm("uninstall", release, "-n", namespace, "--wait")
    assert not left_in_the_cluster(crds)


def left_in_the_cluster(cluster: Cluster) -> str:
    """Cluster-wide objects of a chart that is there no more."""
    of_the_chart = ("-l", "app.kubernetes.io/name=polaris", "-o", "name")
    return cluster.kubectl("get", "clusterroles,clusterrolebindings", *of_the_chart).stdout


def test_releases_stand_beside_each_other(crds: Cluster) -> None:
    """A second database's in the same namespace, a namespaced install in another one."""
    crds.helm("install", "polaris", CHART, "-n", "rag", "--skip-crds")
    second = ("operator.enabled=false", "embedder.enabled=false", "service.databaseSecret=second-query")
    where = "embedder.url=http://polaris-embedder.rag.svc:8081,worker.databaseSecret=second-worker"
    crds.helm("install", "second", CHART, "-n", "rag", "--skip-crds", f"--set={','.join(second)},{where}")
    own = "--set=rbac.scope=namespaced,operator.installation=team-a"
    crds.helm("install", "polaris", CHART, "-n", "team-a", "--skip-crds", own)
    assert {"deployment.apps/polaris-service", "deployment.apps/second-polaris-service"} <= names(crds)
    assert "deployment.apps/polaris-operator" in names(crds, "team-a")
    # Two operators for all namespaces would both take every object: the second one is refused.
    refused = crds.helm("install", "third", CHART, "-n", "team-a", "--skip-crds", check=False)
    assert "invalid ownership metadata" in refused.stderr
    for release, namespace in (("second", "rag"), ("polaris", "team-a"), ("polaris", "rag")):
        crds.helm("uninstall", release, "-n", namespace, "--wait")
    assert names(crds) == names(crds, "team-a") == set()
    assert not left_in_the_cluster(crds)


# The Job of the migrations


def end(cluster: Cluster, job: str, condition: str, uid_before: str = "") -> str:
    """Say of a Job, once there is a new one, that it ended: there is no node that would run it."""
    deadline = time.monotonic() + 60
    while True:
        found = cluster.kubectl("get", "job", job, "-n", "rag", "-o", "json", check=False)
        if found.returncode == 0 and json.loads(found.stdout)["metadata"]["uid"] != uid_before:
            break
        assert time.monotonic() < deadline
        time.sleep(0.1)
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    before = {"Complete": "SuccessCriteriaMet", "Failed": "FailureTarget"}[condition]
    conditions = [
        {"type": kind, "status": "True", "reason": "Told", "lastTransitionTime": now}
        for kind in (before, condition)
    ]
    status: dict[str, Any] = {"startTime": now, "conditions": conditions}
    if condition == "Complete":
        status |= {"completionTime": now, "succeeded": 1}
    cluster.kubectl(
        "patch",
        "job",
        job,
        "-n",
        "rag",
        "--subresource=status",
        "--type=merge",
        "-p",
        json.dumps({"status": status}),
    )
    uid: str = json.loads(found.stdout)["metadata"]["uid"]
    return uid


def test_pods_are_upgraded_after_the_migrations_and_not_where_they_fail(crds: Cluster) -> None:
    flags = ("-n", "rag", "--skip-crds", "--set=migrations.job.enabled=true", "--timeout=60s")

    def helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return crds.helm(*arguments, *flags, check=False)

    with ThreadPoolExecutor(1) as background:
        installing = background.submit(helm, "install", "polaris", CHART)
        done = end(crds, "polaris-migrate", "Complete")
        assert installing.result().returncode == 0
        # It belongs to no release, so nobody but its hook would ever remove it.
        assert "job.batch/polaris-migrate" not in names(crds)

        upgrading = background.submit(helm, "upgrade", "polaris", CHART, "--set=image.tag=another")
        end(crds, "polaris-migrate", "Failed", done)
        failed = upgrading.result()
    assert failed.returncode != 0
    assert "pre-upgrade" in failed.stderr
    (container,) = get(crds, "deployment/polaris-service")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "polaris:0.1.0"
