"""The chart, rendered by helm and judged by the real API server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from kube.cluster import Cluster
from kube.helm import helm
from polaris import settings

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "polaris"
NAMESPACE = "charted"

pytestmark = pytest.mark.kubernetes

VARIANTS: dict[str, tuple[str, ...]] = {
    "defaults": (),
    "namespaced, its own namespace": ("--set=rbac.scope=namespaced", "--set=operator.installation=here"),
    "namespaced, two namespaces": (
        "--set=rbac.scope=namespaced",
        "--set=operator.installation=here",
        f"--set=operator.watchNamespaces={{{NAMESPACE},default}}",
    ),
    "a second database: service and worker alone": (
        "--set=operator.enabled=false",
        "--set=embedder.enabled=false",
        "--set=embedder.url=http://first-polaris-embedder.rag.svc:8081",
        "--set=service.databaseSecret=second-query",
        "--set=worker.databaseSecret=second-worker",
    ),
    "the operator alone": (
        "--set=service.enabled=false",
        "--set=worker.enabled=false",
        "--set=embedder.enabled=false",
    ),
    "a generator with a key, digests, names of one's own": (
        "--set=service.generator.kind=openai",
        "--set=service.generator.url=http://vllm.rag.svc:8000",
        "--set=service.generator.model=some-model",
        "--set=service.generator.keySecret=generator-key",
        "--set=embedder.keySecret=embedder-key",
        f"--set=image.digest=sha256:{'0' * 64}",
        "--set=fullnameOverride=rag",
        "--set=service.serviceAccount.name=existing",
        "--set=service.podLabels.team=a",
    ),
    "the demo": ("--set=demo.enabled=true",),
    "the demo: namespaced, nothing kept, no index, two databases": (
        "--set=demo.enabled=true",
        "--set=demo.storage.emptyDir=true",
        "--set=demo.index=",
        "--set=demo.databases={one,two}",
        "--set=rbac.scope=namespaced",
        "--set=operator.installation=here",
    ),
    "helm test asks an index": (f"--set=tests.index={NAMESPACE}/handbook",),
    "nothing runs": tuple(f"--set={part}.replicas=0" for part in ("service", "worker", "embedder")),
}


def render(*flags: str, release: str = "polaris") -> list[dict[str, Any]]:
    """Return the objects that helm renders."""
    done = helm("template", release, str(CHART), "--namespace", NAMESPACE, *flags)
    return [document for document in yaml.safe_load_all(done.stdout) if document]


@pytest.fixture(scope="module")
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace of ours that must hold to restricted Pod Security."""
    cluster.kubectl("create", "namespace", NAMESPACE)
    cluster.kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/warn=restricted")
    cluster.kubectl("apply", "-f", str(CHART / "crds"))
    cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
    # A pod is looked at together with its ServiceAccount, which is not there in a dry run.
    for name in ("polaris-test", "rag-test"):
        cluster.kubectl("create", "serviceaccount", name, "-n", NAMESPACE)
    yield NAMESPACE
    cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def test_helm_finds_nothing_to_complain_about() -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART)).stdout


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_rendered_is_accepted_by_the_api_server(
    cluster: Cluster, namespace: str, variant: str
) -> None:
    objects = render(*VARIANTS[variant])
    assert all(o["metadata"].get("namespace", namespace) in (namespace, "default") for o in objects)
    text = yaml.safe_dump_all(objects)
    done = cluster.kubectl("apply", "--server-side", "--dry-run=server", "-f", "-", input=text)
    assert len(done.stdout.splitlines()) == len(objects)
    assert "would violate PodSecurity" not in done.stderr


def test_zero_and_false_are_values() -> None:
    objects = render("--set=service.replicas=0", "--set=worker.replicas=0", "--set=embedder.replicas=0")
    replicas = {o["metadata"]["name"]: o["spec"]["replicas"] for o in objects if o["kind"] == "Deployment"}
    assert replicas == {
        "polaris-operator": 1,
        "polaris-service": 0,
        "polaris-worker": 0,
        "polaris-embedder": 0,
    }


def test_an_unknown_value_is_refused() -> None:
    done = helm("template", "x", str(CHART), "--set=service.replica=3", check=False)
    assert done.returncode != 0
    assert "additional properties 'replica' not allowed" in done.stderr


def test_without_an_embedder_the_chart_asks_where_text_becomes_vectors() -> None:
    done = helm("template", "x", str(CHART), "--set=embedder.enabled=false", check=False)
    assert "embedder.url must say" in done.stderr


def test_a_namespaced_install_has_to_say_which_cluster_it_is() -> None:
    done = helm("template", "x", str(CHART), "--set=rbac.scope=namespaced", check=False)
    assert "operator.installation must name this cluster" in done.stderr


def test_a_namespaced_install_makes_no_cluster_role() -> None:
    kinds = [o["kind"] for o in render(*VARIANTS["namespaced, its own namespace"])]
    assert "ClusterRole" not in kinds
    # TokenReview and SubjectAccessReview are cluster-wide by nature.
    assert kinds.count("ClusterRoleBinding") == 1


def test_every_value_has_a_sentence() -> None:
    lines = (CHART / "values.yaml").read_text("utf-8").splitlines()
    for above, line in pairwise(lines):
        leaf = re.match(r" *(?!requests|limits)[A-Za-z]+: *\S", line)
        assert not leaf or above.strip().startswith("# -- "), f"no sentence above: {line}"


def test_every_value_stands_in_the_schema() -> None:
    def paths(schema: dict[str, Any]) -> dict[str, Any]:
        return {
            k: paths(v) if v.get("additionalProperties") is False else {}
            for k, v in schema["properties"].items()
        }

    def keys(values: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
        return {k: keys(v, like[k]) if like[k] and isinstance(v, dict) else {} for k, v in values.items()}

    schema = paths(json.loads((CHART / "values.schema.json").read_text("utf-8")))
    schema.pop("global")
    for part in ("operator", "service", "worker", "embedder"):
        schema[part]["resources"] = {}
    for server in ("postgres", "openbao"):
        schema["demo"][server]["resources"] = {}
    assert keys(yaml.safe_load((CHART / "values.yaml").read_text("utf-8")), schema) == schema


def test_every_variable_that_the_chart_sets_is_a_setting() -> None:
    known = {variable for _, variable, _, _ in settings.rows()}
    for document in render(*VARIANTS["a generator with a key, digests, names of one's own"]):
        if document["kind"] != "Deployment":
            continue
        (container,) = document["spec"]["template"]["spec"]["containers"]
        assert {entry["name"] for entry in container["env"]} <= known


def test_the_crds_of_the_chart_are_the_crds() -> None:
    for path in (ROOT / "crds").glob("*.yaml"):
        assert (CHART / "crds" / path.name).read_bytes() == path.read_bytes()
