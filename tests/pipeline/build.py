"""Builds what judges our workflows, our Compose file and our objects' health: once, from the go.mod here."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kube import build
from kube.tool import run

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORKFLOWS = sorted(
    [*(ROOT / ".github/workflows").glob("*.yml"), *(ROOT / ".github/workflows").glob("*.yaml")]
)

ACTIONLINT = build.Module(HERE / "actionlint", {"actionlint": "github.com/rhysd/actionlint/cmd/actionlint"})
TOOLS = build.Module(
    HERE,
    {
        "compose": "polaris.dev/tests/pipeline/compose",
        "kstatus": "polaris.dev/tests/pipeline/kstatus",
    },
)
FLUX = build.Module(HERE / "flux", {"flux": "polaris.dev/tests/pipeline/flux"})


def actionlint(files: Sequence[Path]) -> str:
    """What actionlint has against workflows, with shellcheck where it is installed; empty: nothing."""
    program = build.binaries(("actionlint",), module=ACTIONLINT)["actionlint"]
    return run([program, "-no-color", "-oneline", *files], os.environ, check=False).stdout


def kstatus(objects: Sequence[dict[str, Any]]) -> list[str]:
    """What Flux and `kubectl wait` make of each object's status: Current, InProgress, Failed and so on."""
    program = build.binaries(("kstatus",), module=TOOLS)["kstatus"]
    lines = "".join(f"{json.dumps(each)}\n" for each in objects)
    done = subprocess.run([program], input=lines, capture_output=True, text=True, check=True)
    return [line.partition("\t")[0] for line in done.stdout.splitlines()]


def flux(checks: Sequence[dict[str, Any]], objects: Sequence[dict[str, Any]]) -> list[str]:
    """What Flux's kustomize-controller makes of each object's status by `healthCheckExprs`."""
    program = build.binaries(("flux",), module=FLUX)["flux"]
    lines = "".join(f"{json.dumps(each)}\n" for each in objects)
    done = subprocess.run(
        [program, json.dumps(checks)], input=lines, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def compose(file: Path) -> dict[str, Any]:
    """What `docker compose config` makes of a Compose file, profiles included; ToolError where it is none."""
    program = build.binaries(("compose",), module=TOOLS)["compose"]
    # Only what the file says by itself: nothing of this machine's environment.
    project: dict[str, Any] = json.loads(run([program, file], {"PATH": os.environ["PATH"]}).stdout)
    return project


def words_of_make() -> set[str]:
    """The words of the Makefile."""
    text = (ROOT / "Makefile").read_text("utf-8")
    lines = re.findall(r"^([a-z][a-z -]*):(?!=)", text, re.MULTILINE)
    return {word for line in lines for word in line.split()}
