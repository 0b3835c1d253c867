"""What the first page shows for one machine, run as it stands there; only the port is another."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.program import environment
from cli.up import Up
from docs.pages import README, ROOT, block

pytestmark = pytest.mark.timeout(300)

_SHELL = ["bash", "-euo", "pipefail", "-c"]


def _make(*arguments: str, data: Path) -> list[str]:
    """`make` with the environment that these tests run in, which is the one that it made."""
    return ["make", *arguments, f"VENV={Path(sys.prefix)}", f"POLARIS_DATA={data}"]


@pytest.fixture(scope="module")
def made(open_folder: Path) -> Iterator[Up]:
    """What `make up` starts."""
    running = Up(open_folder / "data")
    running.command = _make("up", f"POLARIS_PORT={running.port}", data=running.data)
    try:
        running.start()
        yield running
    finally:
        running.end()


def test_make_up_answers_the_question_of_the_first_page(made: Up) -> None:
    shown = block(README, "sh", "handbook/answer").replace("http://127.0.0.1:8080", made.address)
    assert made.address in shown
    done = subprocess.run([*_SHELL, shown], capture_output=True, text=True, check=True, timeout=60)
    answer = json.loads(done.stdout)
    promised = json.loads(block(README, "json", "citations"))
    assert set(promised) <= set(answer)
    assert answer["refused"] is False
    for citation in answer["citations"]:
        assert set(promised["citations"][0]) <= set(citation)
    assert answer["citations"][0]["document"].startswith("handbook/pt/")


def test_the_programs_own_question_of_the_first_page_is_answered(made: Up) -> None:
    (shown,) = re.findall(r"`\.venv/bin/(polaris ask [^`]+)`", README.read_text("utf-8"))
    programs = Path(sys.executable).parent
    variables = environment(
        POLARIS_SERVER=made.address, PATH=f"{programs}{os.pathsep}{os.environ['PATH']}", PYTHONWARNINGS=""
    )
    done = subprocess.run(
        [*_SHELL, shown], capture_output=True, text=True, check=True, env=variables, timeout=60
    )
    assert "handbook/en/" in done.stdout


def test_ctrl_c_stops_it_and_make_down_removes_its_data(made: Up) -> None:
    made.stop(signal.SIGINT)
    assert made.data.is_dir()
    subprocess.run(_make("down", "YES=1", data=made.data), cwd=ROOT, check=True, timeout=60)
    assert not made.data.exists()
