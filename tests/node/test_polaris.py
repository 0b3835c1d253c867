"""The images of POLARIS, run as the strictest Pod Security demands."""

from __future__ import annotations

import pytest
import yaml

from kube.tool import ToolError
from node import images
from node.node import Given, Node
from polaris import __version__

pytestmark = pytest.mark.node


def pod(image: str, *arguments: str, port: int = 8080, env: dict[str, str] | None = None) -> str:
    """A pod with a root file system that it can't write, and rights to nothing."""
    container = {
        "name": "polaris",
        "image": image,
        "imagePullPolicy": "Never",
        "args": list(arguments),
        "env": [{"name": name, "value": value} for name, value in (env or {}).items()],
        "ports": [{"name": "http", "containerPort": port}],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108 - the pod's own
    }
    serves = {"readinessProbe": {"httpGet": {"path": "/livez", "port": "http"}, "periodSeconds": 1}}
    runs = bool(arguments) and not arguments[0].startswith("-")
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": runs,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container | serves] if runs else [container],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    metadata = {"name": "polaris", "labels": {"app": "polaris"}}
    return yaml.safe_dump({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})


def start(node: Node | Given, namespace: str, manifest: str, until: str) -> None:
    node.kubectl("apply", "-n", namespace, "-f", "-", input=manifest)
    try:
        node.kubectl("wait", f"--for={until}", "pod/polaris", "-n", namespace, "--timeout=120s")
    except ToolError as error:
        said = node.kubectl("logs", "polaris", "-c", "polaris", "-n", namespace, check=False)
        seen = node.kubectl("describe", "pod/polaris", "-n", namespace, check=False)
        raise AssertionError(f"{error}\n{said.stdout}{said.stderr}\n{seen.stdout[-3000:]}") from error


def get(node: Node | Given, namespace: str, path: str, port: int = 8080) -> str:
    """What the program answers on that path; ToolError has what it answers with an error."""
    through = f"/api/v1/namespaces/{namespace}/pods/polaris:{port}/proxy{path}"
    return node.kubectl("get", "--raw", through).stdout


@pytest.mark.parametrize("target", list(images.TARGETS))
def test_it_says_its_version(
    node: Node | Given, namespace: str, target: str, request: pytest.FixtureRequest
) -> None:
    image: images.Image = request.getfixturevalue(f"{target}_image")
    start(node, namespace, pod(image.name, "--version"), "jsonpath={.status.phase}=Succeeded")
    assert node.kubectl("logs", "polaris", "-n", namespace).stdout.strip() == __version__


def test_the_service_starts_before_its_secret_is_there_and_says_so(
    node: Node | Given, namespace: str, polaris_image: images.Image
) -> None:
    settings = {
        "POLARIS_HOST": "0.0.0.0",  # noqa: S104 - in the pod
        "POLARIS_AUTH": "kubernetes",
        "POLARIS_DATABASE_SECRET": "/run/polaris/database",
        "POLARIS_EMBEDDER": "http://embedder:8081",
    }
    start(node, namespace, pod(polaris_image.name, "serve", env=settings), "condition=Ready")
    assert get(node, namespace, "/livez")
    assert "no login for the database yet" in get(node, namespace, "/readyz")


def test_the_embedder_starts_with_its_model_in_the_image(
    node: Node | Given, namespace: str, embedder_image: images.Image
) -> None:
    settings = {"POLARIS_HOST": "0.0.0.0"}  # noqa: S104 - in the pod
    manifest = pod(embedder_image.name, "embedder", port=8081, env=settings)
    start(node, namespace, manifest, "condition=Ready")
    assert "multilingual-e5-small" in get(node, namespace, "/v1/models", 8081)
