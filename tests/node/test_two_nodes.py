"""What two nodes must do before one is drained under POLARIS."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from node.conftest import fresh_namespace
from node.node import TOOLS, Node

pytestmark = pytest.mark.node

NODES = ("node-1", "node-2")
# One pod on each node, and none that gives way before the other is back.
EVERYWHERE = f"""
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      securityContext: {{runAsNonRoot: true, seccompProfile: {{type: RuntimeDefault}}}}
      terminationGracePeriodSeconds: 0
      topologySpreadConstraints:
      - maxSkew: 1
        topologyKey: kubernetes.io/hostname
        whenUnsatisfiable: ScheduleAnyway
        labelSelector: {{matchLabels: {{app: web}}}}
      containers:
      - name: web
        image: {TOOLS}
        imagePullPolicy: Never
        args: [serve, /www]
        ports: [{{name: http, containerPort: 8080}}]
        readinessProbe: {{httpGet: {{path: /hello, port: http}}, periodSeconds: 1}}
        securityContext: {{allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}
        volumeMounts: [{{name: www, mountPath: /www}}]
      volumes: [{{name: www, configMap: {{name: www}}}}]
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: www}}
data: {{hello: from a pod}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  selector: {{app: web}}
  ports: [{{port: 80, targetPort: http}}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {{name: web}}
spec: {{minAvailable: 1, selector: {{matchLabels: {{app: web}}}}}}
"""


@pytest.fixture
def namespace(two_nodes: Node) -> Iterator[str]:
    """A namespace of the test's own there."""
    with fresh_namespace(two_nodes) as name:
        yield name


@pytest.fixture
def pods(two_nodes: Node, namespace: str) -> dict[str, dict[str, str]]:
    """Name and address of the pod on each node; the Service `web` is before them."""
    two_nodes.kubectl("apply", "-n", namespace, "-f", "-", input=EVERYWHERE)
    two_nodes.kubectl("rollout", "status", "deployment/web", "-n", namespace, "--timeout=60s")
    found = running(two_nodes, namespace)
    assert sorted(found) == list(NODES)
    return found


def running(node: Node, namespace: str) -> dict[str, dict[str, str]]:
    """By node: a pod's name and address."""
    answer = json.loads(node.kubectl("get", "pods", "-n", namespace, "-o", "json").stdout)
    return {
        pod["spec"]["nodeName"]: {"name": pod["metadata"]["name"], "address": pod["status"]["podIP"]}
        for pod in answer["items"]
        if "deletionTimestamp" not in pod["metadata"] and pod["status"].get("podIP")
    }


def get(node: Node, namespace: str, pod: str, host: str) -> str:
    """What a pod is answered by a host."""
    url = f"http://{host}/hello"
    return node.kubectl("exec", pod, "-n", namespace, "--", "/bin/tools", "get", url).stdout


@pytest.mark.parametrize(("here", "there"), [NODES, NODES[::-1]])
def test_a_pod_reaches_the_pods_of_the_other_node_and_services(
    two_nodes: Node, namespace: str, pods: dict[str, dict[str, str]], here: str, there: str
) -> None:
    asking = pods[here]["name"]
    assert get(two_nodes, namespace, asking, f"{pods[there]['address']}:8080") == "from a pod"
    # Each pod has its turn behind the Service, so both ways are gone.
    for _ in range(8):
        assert get(two_nodes, namespace, asking, "web") == "from a pod"


def test_logs_and_statistics_come_from_each_node(
    two_nodes: Node, namespace: str, pods: dict[str, dict[str, str]]
) -> None:
    for name in NODES:
        assert "GET /hello" in two_nodes.kubectl("logs", pods[name]["name"], "-n", namespace).stdout
        assert two_nodes.kubectl(
            "get", "--raw", f"/api/v1/nodes/{name}/proxy/stats/summary?only_cpu_and_memory=true"
        ).stdout


@pytest.mark.usefixtures("pods")
def test_the_groups_of_the_nodes_are_their_own(two_nodes: Node) -> None:
    # In its own cgroup namespace each node is at the top, and sees its own pods only.
    uids = []
    for number in (1, 2):
        seen = two_nodes.inside("sh", "-c", "ls -d /sys/fs/cgroup/memory/kubepods/*/pod*", on=number)
        uids.append({line.rpartition("/pod")[2] for line in seen.stdout.split()})
    assert all(uids)
    assert not uids[0] & uids[1]


def test_a_node_is_drained_and_its_pods_come_up_on_the_other(
    two_nodes: Node, namespace: str, pods: dict[str, dict[str, str]]
) -> None:
    flags = ("--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s")
    try:
        two_nodes.kubectl("drain", "node-2", *flags, "--pod-selector=app=web")
        assert list(running(two_nodes, namespace)) == ["node-1"]
        two_nodes.kubectl("rollout", "status", "deployment/web", "-n", namespace, "--timeout=60s")
        assert get(two_nodes, namespace, pods["node-1"]["name"], "web") == "from a pod"
    finally:
        two_nodes.kubectl("uncordon", "node-2")
