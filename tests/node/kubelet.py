"""What the kubelets count: the memory of pods."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta

from node.node import Given, Node

_SETTLED = timedelta(seconds=15)
# It counts every 10 s or so.
_COUNTED_SECONDS = 90.0


def memory_of_parts(node: Node | Given, namespace: str) -> dict[str, float]:
    """The memory in MiB that each part of POLARIS takes in a namespace, counted once its pods have settled.

    By `app.kubernetes.io/component`; of several pods the largest.
    """
    listed = node.kubectl("get", "pods", "-l", "app.kubernetes.io/component", "-n", namespace, "-o", "json")
    pods = {pod["metadata"]["name"]: pod for pod in json.loads(listed.stdout)["items"]}
    nodes = {pod["spec"]["nodeName"] for pod in pods.values()}
    since, deadline = datetime.now(UTC) + _SETTLED, time.monotonic() + _COUNTED_SECONDS
    counted: dict[str, float] = {}
    while not pods.keys() <= counted.keys():
        assert time.monotonic() < deadline, f"not counted: {pods.keys() - counted.keys()}"
        time.sleep(1)
        for name in nodes:
            counted |= _counted_by(node, name, namespace, since)
    parts: dict[str, float] = {}
    for name, pod in pods.items():
        part = pod["metadata"]["labels"]["app.kubernetes.io/component"]
        parts[part] = max(parts.get(part, 0.0), counted[name])
    return parts


def _counted_by(node: Node | Given, name: str, namespace: str, since: datetime) -> dict[str, float]:
    path = f"/api/v1/nodes/{name}/proxy/stats/summary?only_cpu_and_memory=true"
    found = {}
    for pod in json.loads(node.kubectl("get", "--raw", path).stdout)["pods"]:
        memory = pod.get("memory", {"time": "1970-01-01T00:00:00Z"})
        if pod["podRef"]["namespace"] == namespace and datetime.fromisoformat(memory["time"]) > since:
            found[pod["podRef"]["name"]] = memory["workingSetBytes"] / (1 << 20)
    return found
