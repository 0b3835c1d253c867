"""What tests of releases wait for, beyond what `kubectl wait` can tell."""

from __future__ import annotations

import time
from collections.abc import Callable


def for_the_login(kubectl: Callable[..., str], namespace: str) -> None:
    """Return when each pod of the service has its login: the kubelet brings a Secret in its own time.

    `kubectl` runs in that namespace.
    """
    for pod in kubectl("get", "pods", "-l", "app.kubernetes.io/component=service", "-o", "name").split():
        where = f"/api/v1/namespaces/{namespace}/pods/{pod.removeprefix('pod/')}:8080/proxy/readyz"
        deadline = time.monotonic() + 120
        while (said := kubectl("get", "--raw", where).strip()) != "ok":
            assert time.monotonic() < deadline, said
            time.sleep(0.5)
