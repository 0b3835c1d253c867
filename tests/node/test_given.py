"""A cluster that is given by `POLARIS_TEST_KUBECONFIG`: our own node, as if it were somebody else's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from node import machine
from node.node import Node

pytestmark = pytest.mark.node

RUN = Path(__file__).with_name("run.py")
SOME = "test_node and (service_answers or token or restricted or log_can_be_read)"


def run(given: Path) -> subprocess.CompletedProcess[str]:
    """Some tests of `test_node.py`, in the cluster of a kubeconfig."""
    return subprocess.run(
        [sys.executable, RUN, "-k", SOME, "-p", "no:cacheprovider"],
        env=os.environ | {machine.GIVEN: str(given)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_tests_run_in_a_cluster_that_is_given(node: Node) -> None:
    with node.network():  # it alone reaches the cluster
        done = run(node.kubeconfig)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout
    assert "the node started" not in done.stdout


def test_a_kubeconfig_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = run(tmp_path / "none")
    assert done.returncode
    assert done.stderr == f"{machine.GIVEN} names no file: {tmp_path / 'none'}\n"
