"""What a cluster must do before POLARIS is tested on it."""

from __future__ import annotations

import json
import time

import pytest

from kube.tool import ToolError
from node.node import TOOLS, Given, Node

pytestmark = pytest.mark.node

WEB = f"""
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      securityContext: {{runAsNonRoot: true, seccompProfile: {{type: RuntimeDefault}}}}
      terminationGracePeriodSeconds: 0
      containers:
      - name: web
        image: {TOOLS}
        imagePullPolicy: Never
        args: [serve, /www]
        ports: [{{name: http, containerPort: 8080}}]
        readinessProbe: {{httpGet: {{path: /hello, port: http}}, periodSeconds: 1}}
        resources: {{limits: {{memory: 32Mi}}}}
        securityContext: {{allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}
        volumeMounts: [{{name: www, mountPath: /www}}]
      volumes: [{{name: www, configMap: {{name: www}}}}]
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: www}}
data: {{hello: from the pod}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  selector: {{app: web}}
  ports: [{{port: 80, targetPort: http}}]
"""
AS_ROOT = f"""
apiVersion: v1
kind: Pod
metadata: {{name: as-root}}
spec: {{containers: [{{name: one, image: {TOOLS}, securityContext: {{runAsUser: 0}}}}]}}
"""
GREEDY = f"""
apiVersion: v1
kind: Pod
metadata: {{name: greedy}}
spec:
  restartPolicy: Never
  securityContext: {{runAsNonRoot: true, seccompProfile: {{type: RuntimeDefault}}}}
  containers:
  - name: greedy
    image: {TOOLS}
    imagePullPolicy: Never
    args: [eat, "64"]
    resources: {{limits: {{memory: 16Mi}}}}
    securityContext: {{allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}
"""
NOBODY_IN = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: nobody-in}
spec: {podSelector: {}, policyTypes: [Ingress]}
"""


@pytest.fixture
def web(node: Node | Given, namespace: str) -> str:
    """The name of a pod that answers over HTTP, behind the Service `web`."""
    node.kubectl("apply", "-n", namespace, "-f", "-", input=WEB)
    node.kubectl("rollout", "status", "deployment/web", "-n", namespace, "--timeout=60s")
    return the_pod(node, namespace)


def the_pod(node: Node | Given, namespace: str) -> str:
    answer = node.kubectl("get", "pods", "-l", "app=web", "-o", "json", "-n", namespace)
    alive = [pod for pod in json.loads(answer.stdout)["items"] if "deletionTimestamp" not in pod["metadata"]]
    assert len(alive) == 1
    name: str = alive[0]["metadata"]["name"]
    return name


def in_pod(node: Node | Given, namespace: str, pod: str, *command: str) -> str:
    return node.kubectl("exec", pod, "-n", namespace, "--", "/bin/tools", *command).stdout


def memory_of_pods(node: Node | Given, where: str) -> dict[str, int]:
    """The memory of the pods on a node in bytes, as its kubelet counts it: every 10 s or so."""
    answer = node.kubectl(
        "get", "--raw", f"/api/v1/nodes/{where}/proxy/stats/summary?only_cpu_and_memory=true"
    )
    pods = json.loads(answer.stdout)["pods"]
    return {pod["podRef"]["name"]: pod.get("memory", {}).get("workingSetBytes", 0) for pod in pods}


def test_a_pod_runs_its_probe_passes_and_its_log_can_be_read(
    node: Node | Given, namespace: str, web: str
) -> None:
    node.kubectl("wait", "--for=condition=Ready", f"pod/{web}", "-n", namespace, "--timeout=30s")
    assert "GET /hello" in node.kubectl("logs", web, "-n", namespace).stdout


def test_a_service_answers_by_its_address_and_by_its_name(
    node: Node | Given, namespace: str, web: str
) -> None:
    address = node.kubectl("get", "svc", "web", "-n", namespace, "-o", "jsonpath={.spec.clusterIP}").stdout
    # The pod asks itself, through its Service: the longest way there is on one node.
    for host in (address, "web", f"web.{namespace}.svc.cluster.local"):
        assert in_pod(node, namespace, web, "get", f"http://{host}/hello") == "from the pod"


def test_what_the_cluster_does_not_know_has_no_address(node: Node | Given, namespace: str, web: str) -> None:
    with pytest.raises(ToolError, match="no such host"):
        in_pod(node, namespace, web, "lookup", f"nobody.{namespace}.svc.cluster.local.")


def test_the_api_server_answers_pods(node: Node | Given, namespace: str, web: str) -> None:
    with pytest.raises(ToolError, match="certificate signed by unknown authority"):
        in_pod(node, namespace, web, "get", "https://kubernetes.default")


def test_a_token_is_for_its_audience_only(node: Node | Given, namespace: str) -> None:
    spec = {"token": node.token(namespace, "default", audience="polaris"), "audiences": ["polaris"]}
    review = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": spec,
    }
    where = "/apis/authentication.k8s.io/v1/tokenreviews"
    assert node.api("POST", where, review).json()["status"]["authenticated"]
    spec["audiences"] = ["vault"]
    assert "authenticated" not in node.api("POST", where, review).json()["status"]


def test_a_pod_of_a_deployment_that_is_deleted_comes_back(
    node: Node | Given, namespace: str, web: str
) -> None:
    node.kubectl("delete", "pod", web, "-n", namespace, "--timeout=60s")
    node.kubectl("rollout", "status", "deployment/web", "-n", namespace, "--timeout=60s")
    assert the_pod(node, namespace) != web


def test_a_program_that_dies_is_started_again(node: Node | Given, namespace: str, web: str) -> None:
    with pytest.raises(ToolError):  # it dies without an answer
        in_pod(node, namespace, web, "get", "http://localhost:8080/die")
    again = "--for=jsonpath={.status.containerStatuses[0].restartCount}=1"
    node.kubectl("wait", again, f"pod/{web}", "-n", namespace, "--timeout=60s")
    node.kubectl("wait", "--for=condition=Ready", f"pod/{web}", "-n", namespace, "--timeout=60s")


def test_a_pod_that_takes_more_memory_than_its_limit_is_killed(node: Node | Given, namespace: str) -> None:
    node.kubectl("apply", "-n", namespace, "-f", "-", input=GREEDY)
    killed = "--for=jsonpath={.status.containerStatuses[0].state.terminated.reason}=OOMKilled"
    node.kubectl("wait", killed, "pod/greedy", "-n", namespace, "--timeout=60s")


def test_the_kubelet_counts_the_memory_of_pods(node: Node | Given, namespace: str, web: str) -> None:
    where = node.kubectl("get", "pod", web, "-n", namespace, "-o", "jsonpath={.spec.nodeName}").stdout
    deadline = time.monotonic() + 60
    while not (counted := memory_of_pods(node, where).get(web)):
        assert time.monotonic() < deadline
        time.sleep(1)
    assert 1 << 20 < counted < 32 << 20


def test_restricted_pod_security_refuses_a_pod_that_runs_as_root(node: Node | Given, namespace: str) -> None:
    with pytest.raises(ToolError, match=r'violates PodSecurity "restricted:latest"(?s:.*)runAsUser=0'):
        node.kubectl("apply", "-n", namespace, "-f", "-", input=AS_ROOT)


def test_network_policies_are_accepted_and_not_enforced_here(
    node: Node | Given, namespace: str, web: str
) -> None:
    """To be known: who reads a green test of a NetworkPolicy here has only seen that it is well-formed."""
    node.kubectl("apply", "-n", namespace, "-f", "-", input=NOBODY_IN)
    address = node.kubectl("get", "pod", web, "-n", namespace, "-o", "jsonpath={.status.podIP}").stdout
    assert in_pod(node, namespace, web, "get", f"http://{address}:8080/hello")
