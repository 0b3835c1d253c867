"""The chart, installed: its pods run, and say what they wait for."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from kube.tool import ToolError
from node import images
from node.kubelet import memory_of_parts
from node.node import Given, Node

pytestmark = pytest.mark.node

CHART = Path(__file__).parents[2] / "charts" / "polaris"
DEPLOYMENTS = ("operator", "service", "worker", "embedder")
DATABASE = """
apiVersion: polaris.dev/v1alpha1
kind: PolarisDatabase
metadata: {name: main}
spec:
  host: postgres.nowhere.svc
  database: polaris
  credentials: {secretRef: {name: not-there}}
  logins:
    query: {secretName: polaris-query}
    worker: {secretName: polaris-worker}
"""


def use(prefix: str, image: images.Image) -> tuple[str, ...]:
    """Flags for an image that the tests built, in place of the one that a release would bring."""
    repository, tag = image.name.rsplit(":", 1)
    values = {"repository": repository, "tag": tag, "pullPolicy": "Never"}
    return tuple(f"--set={prefix}.{key}={value}" for key, value in values.items())


@pytest.fixture(scope="module")
def release(node: Node | Given, polaris_image: images.Image, embedder_image: images.Image) -> Iterator[str]:
    """The namespace of a release without a database; restricted Pod Security is enforced there."""
    namespace = "chart"
    node.kubectl("create", "namespace", namespace)
    node.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    own = (*use("image", polaris_image), *use("embedder.image", embedder_image))
    node.helm("install", "polaris", CHART, "-n", namespace, *own)
    yield namespace
    node.helm("uninstall", "polaris", "-n", namespace, "--ignore-not-found")
    node.kubectl("delete", "namespace", namespace, "--wait=false")


def answer(node: Node | Given, namespace: str, service: str, path: str) -> str:
    """What a Service answers, through the API server."""
    return node.kubectl(
        "get", "--raw", f"/api/v1/namespaces/{namespace}/services/{service}/proxy{path}"
    ).stdout


def test_all_pods_become_ready_without_a_database(
    node: Node | Given, release: str, report: Callable[[str], None]
) -> None:
    begun = time.monotonic()
    for part in DEPLOYMENTS:
        where = ("-n", release, "--timeout=120s")
        try:
            node.kubectl("rollout", "status", f"deployment/polaris-{part}", *where)
        except ToolError as error:
            said = node.kubectl("logs", "-n", release, f"deployment/polaris-{part}", check=False)
            seen = node.kubectl("describe", "pods", "-n", release, check=False)
            raise AssertionError(f"{error}\n{said.stdout}{said.stderr}\n{seen.stdout[-5000:]}") from error
    report(f"the chart's pods were ready {time.monotonic() - begun:.0f} s after helm install")


def test_the_service_says_that_its_secret_is_not_there_yet(node: Node | Given, release: str) -> None:
    assert "no login for the database yet" in answer(node, release, "polaris-service:http", "/readyz")


def test_the_embedder_answers_through_its_service(node: Node | Given, release: str) -> None:
    assert "multilingual-e5-small" in answer(node, release, "polaris-embedder:8081", "/v1/models")


def test_the_operator_tells_an_object_what_is_missing(node: Node | Given, release: str) -> None:
    node.kubectl("apply", "-n", release, "-f", "-", input=DATABASE)
    reason = "--for=jsonpath={.status.conditions[?(@.type=='Ready')].reason}=SecretNotFound"
    node.kubectl("wait", reason, "pgdb/main", "-n", release, "--timeout=60s")


def test_what_pods_take_when_idle_is_within_the_goals(
    node: Node | Given, release: str, report: Callable[[str], None]
) -> None:
    """Operator ≤ 150 MiB, service ≤ 200 MiB, as the kubelet counts."""
    mebibytes = memory_of_parts(node, release)
    report("idle, in MiB: " + ", ".join(f"{part} {size:.0f}" for part, size in sorted(mebibytes.items())))
    assert mebibytes["operator"] <= 150
    assert mebibytes["service"] <= 200


def test_it_speaks_https_behind_policies_budgets_and_autoscalers(node: Node | Given, release: str) -> None:
    authority = trustme.CA()
    for part in ("service", "embedder"):
        pair = authority.issue_cert(f"polaris-{part}.{release}.svc")
        files = {
            "tls.crt": b"".join(pem.bytes() for pem in pair.cert_chain_pems),
            "tls.key": pair.private_key_pem.bytes(),
            "ca.crt": authority.cert_pem.bytes(),
        }
        manifest = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": f"{part}-tls", "namespace": release},
            "type": "kubernetes.io/tls",
            "stringData": {name: content.decode() for name, content in files.items()},
        }
        node.kubectl("apply", "-f", "-", input=json.dumps(manifest))
    values = (
        "service.tls.secretName=service-tls,embedder.tls.secretName=embedder-tls",
        "networkPolicy.enabled=true,networkPolicy.egress.enabled=true",
        "service.autoscaling.enabled=true,worker.replicas=2,settings.max_k=50",
        "networkPolicy.service.from[0].podSelector.matchLabels.app=portal",
    )
    change = ("--reset-then-reuse-values", f"--set={','.join(values)}")
    node.helm("upgrade", "polaris", CHART, "-n", release, *change)
    for part in DEPLOYMENTS:
        node.kubectl("rollout", "status", f"deployment/polaris-{part}", "-n", release, "--timeout=120s")
    assert "no login for the database yet" in answer(node, release, "https:polaris-service:https", "/readyz")
    node.helm("test", "polaris", "-n", release, "--timeout=60s")
    assert "multilingual-e5-small" in answer(node, release, "https:polaris-embedder:https", "/v1/models")
    kinds = "networkpolicies,poddisruptionbudgets,horizontalpodautoscalers"
    made = node.kubectl("get", kinds, "-n", release, "-o", "name").stdout.split()
    assert len(made) == 4 + 3 + 1


def test_what_is_uninstalled_is_gone_and_the_objects_stay(node: Node | Given, release: str) -> None:
    node.helm("uninstall", "polaris", "-n", release, "--timeout=120s")
    node.kubectl("wait", "--for=delete", "pods", "--all", "-n", release, "--timeout=120s")
    left = node.kubectl(
        "get", "deployments,pods,services,serviceaccounts", "-n", release, "-o", "name"
    ).stdout
    assert left.split() == ["serviceaccount/default"]
    assert node.kubectl("get", "pgdb/main", "-n", release, "-o", "name").stdout
    node.kubectl("delete", "pgdb/main", "-n", release, "--timeout=60s")
