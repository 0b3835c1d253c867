"""The real Helm, built with the control plane, apart from the user's own settings."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from kube import build
from kube.tool import run


def helm(
    *arguments: str | Path, kubeconfig: Path | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run Helm against that cluster, or against none.

    Raises ToolError when it fails, unless `check` is False.
    """
    program = build.binaries(("helm",))["helm"]
    with tempfile.TemporaryDirectory(prefix="polaris-helm-") as home:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HELM_")} | {
            "KUBECONFIG": str(kubeconfig or os.devnull),
            "HELM_CACHE_HOME": home,
            "HELM_CONFIG_HOME": home,
            "HELM_DATA_HOME": home,
        }
        return run([program, *arguments], environment, check=check)
