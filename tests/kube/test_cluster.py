import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from kube.cluster import Cluster, ClusterError
from kube.helm import helm
from kube.tool import ToolError

pytestmark = pytest.mark.kubernetes

GONE_SECONDS = 60

OWNED = """
apiVersion: v1
kind: Secret
metadata:
  name: owned
  ownerReferences:
  - {{apiVersion: {group}, kind: {kind}, name: owner, uid: {uid}}}
"""

CRD = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: things.test.polaris.dev}
spec:
  group: test.polaris.dev
  scope: Namespaced
  names: {kind: Thing, plural: things, singular: thing}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties: {size: {type: integer}}
        x-kubernetes-validations: [{rule: "self.size < 3", message: too large}]
"""

THING = """
apiVersion: test.polaris.dev/v1
kind: Thing
metadata: {{name: owner}}
size: {size}
"""

DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: web}]}
"""


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    name = request.node.name.removeprefix("test_").replace("_", "-")[:60].strip("-")
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")


@pytest.fixture
def account(cluster: Cluster, namespace: str) -> str:
    cluster.kubectl("create", "serviceaccount", "caller", "-n", namespace)
    return "caller"


def belonging_to(folder: Path) -> list[psutil.Process]:
    """The processes that were started with something of that folder."""
    found = psutil.process_iter(["cmdline"])
    return [p for p in found if str(folder) in " ".join(p.info["cmdline"] or [])]


def review(cluster: Cluster, token: str, audience: str) -> dict[str, object]:
    body = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token, "audiences": [audience]},
    }
    answer = cluster.api("POST", "/apis/authentication.k8s.io/v1/tokenreviews", body)
    status: dict[str, object] = answer.json()["status"]
    return status


def assert_what_it_owns_is_collected(cluster: Cluster, namespace: str, group: str, kind: str) -> None:
    where = ("-n", namespace)
    uid = cluster.kubectl("get", kind, "owner", "-o", "jsonpath={.metadata.uid}", *where).stdout
    owned = OWNED.format(group=group, kind=kind, uid=uid)
    cluster.kubectl("create", "-f", "-", *where, input=owned)
    cluster.kubectl("delete", kind, "owner", *where)
    cluster.kubectl("wait", "--for=delete", "secret/owned", f"--timeout={GONE_SECONDS}s", *where)


def test_kubectl_reaches_it_and_versions_agree(cluster: Cluster) -> None:
    answer = cluster.kubectl("version")
    assert "Server Version: v1." in answer.stdout
    assert "WARNING" not in answer.stderr


def test_what_kubectl_is_refused_is_told_in_the_error(cluster: Cluster) -> None:
    with pytest.raises(ToolError, match=r'namespaces "nowhere" not found'):
        cluster.kubectl("get", "namespace", "nowhere")


def test_a_namespace_is_really_deleted(cluster: Cluster, namespace: str) -> None:
    cluster.kubectl("create", "configmap", "inside", "-n", namespace)
    cluster.kubectl("delete", "namespace", namespace, f"--timeout={GONE_SECONDS}s")
    assert cluster.api("GET", f"/api/v1/namespaces/{namespace}").status_code == 404


def test_an_owned_object_is_collected(cluster: Cluster, namespace: str) -> None:
    cluster.kubectl("create", "configmap", "owner", "-n", namespace)
    assert_what_it_owns_is_collected(cluster, namespace, "v1", "ConfigMap")


def test_what_an_object_of_a_new_kind_owns_is_collected_and_its_rules_hold(
    cluster: Cluster, namespace: str
) -> None:
    cluster.install_crds(CRD)
    into = ("create", "-n", namespace, "-f", "-")
    with pytest.raises(ToolError, match="too large"):
        cluster.kubectl(*into, input=THING.format(size=3))
    cluster.kubectl(*into, input=THING.format(size=2))
    assert_what_it_owns_is_collected(cluster, namespace, "test.polaris.dev/v1", "Thing")
    cluster.kubectl("delete", "crd", "things.test.polaris.dev")


def test_a_deployment_becomes_pods(cluster: Cluster, namespace: str) -> None:
    cluster.kubectl("apply", "-n", namespace, "-f", "-", input=DEPLOYMENT)
    wanted = ("--for=jsonpath={.status.replicas}=2", f"--timeout={GONE_SECONDS}s")
    cluster.kubectl("wait", "deployment/web", *wanted, "-n", namespace)
    pods = cluster.kubectl("get", "pods", "-l", "app=web", "-o", "name", "-n", namespace)
    assert len(pods.stdout.split()) == 2


def test_a_token_for_polaris_passes_the_review_for_polaris_and_for_nothing_else(
    cluster: Cluster, namespace: str, account: str
) -> None:
    token = cluster.token(namespace, account, audience="polaris")
    assert review(cluster, token, "polaris")["audiences"] == ["polaris"]
    assert review(cluster, token, "vault").get("authenticated") is None
    assert cluster.api("GET", "/version", token=token).status_code == 401


def test_a_service_account_may_do_what_it_was_granted_and_nothing_else(
    cluster: Cluster, namespace: str, account: str
) -> None:
    caller = f"--kubeconfig={cluster.kubeconfig_for(namespace, account)}"
    before = cluster.kubectl("get", "configmaps", caller, check=False)
    assert "Forbidden" in before.stderr
    subject = f"--serviceaccount={namespace}:{account}"
    cluster.kubectl("create", "rolebinding", "reads", "-n", namespace, "--clusterrole=view", subject)
    # What "view" may do is aggregated by the controller manager, and cached by the API server.
    cluster.kubectl("wait", "clusterrole/view", "--for=jsonpath={.rules[0]}", "--timeout=60s")
    may = cluster.kubectl("auth", "can-i", "list", "configmaps", caller)
    assert may.stdout.strip() == "yes"
    assert cluster.kubectl("get", "configmaps", caller).stdout
    assert "Forbidden" in cluster.kubectl("get", "secrets", caller, check=False).stderr


def test_no_token_is_given_for_an_account_that_is_not_there(cluster: Cluster, namespace: str) -> None:
    with pytest.raises(ClusterError, match=r'serviceaccounts \\"nobody\\" not found'):
        cluster.token(namespace, "nobody")


def test_helm_installs_and_removes_a_chart(cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "Chart.yaml").write_text("{apiVersion: v2, name: one, version: 0.1.0}")
    (tmp_path / "templates" / "web.yaml").write_text(DEPLOYMENT)
    where = ("-n", namespace)
    helm("install", "one", tmp_path, *where, kubeconfig=cluster.kubeconfig)
    assert cluster.kubectl("get", "deployment", "web", *where).stdout
    helm("uninstall", "one", *where, kubeconfig=cluster.kubeconfig)
    assert cluster.kubectl("get", "deployment", "web", *where, check=False).returncode == 1


def test_an_api_server_stopped_and_started_again_has_its_objects(cluster: Cluster, namespace: str) -> None:
    url = cluster.url
    cluster.kubectl("create", "configmap", "kept", "-n", namespace, "--from-literal=a=b")
    with cluster.api_server_stopped(), pytest.raises(ToolError, match="refused"):
        cluster.kubectl("get", "configmap", "kept", "-n", namespace)
    assert cluster.url == url
    kept = cluster.api("GET", f"/api/v1/namespaces/{namespace}/configmaps/kept").json()
    assert kept["data"] == {"a": "b"}


def test_after_stop_no_process_and_no_folder_is_left() -> None:
    with Cluster() as own:
        folder = own.folder
        assert len(belonging_to(folder)) >= 3
    assert belonging_to(folder) == []
    assert not folder.exists()


def test_a_start_that_fails_tells_the_end_of_the_log_and_leaves_nothing() -> None:
    own = Cluster({"etcd": Path("/bin/false"), "kube-apiserver": Path("/bin/nowhere")})
    with pytest.raises(ClusterError, match=r"etcd ended with 1|/bin/nowhere: No such file"):
        own.start()
    assert belonging_to(own.folder) == []
    assert not own.folder.exists()


def test_after_sigkill_of_its_parent_no_process_and_no_folder_is_left() -> None:
    script = "\n".join(
        [
            "import signal",
            "from kube.cluster import Cluster",
            "cluster = Cluster()",
            "cluster.start()",
            "print(cluster.folder, flush=True)",
            "signal.pause()",
        ]
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    with parent:
        try:
            assert parent.stdout is not None
            folder = Path(parent.stdout.readline().strip())
            left = belonging_to(folder)
            assert len(left) >= 3
        finally:
            parent.send_signal(signal.SIGKILL)
    psutil.wait_procs(left, timeout=GONE_SECONDS)
    assert belonging_to(folder) == []
    assert not folder.exists()
