"""`make test-node`: the tests on a node, where this machine can run one; otherwise it says why not.

Arguments are pytest's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # run by its path: the packages are one folder up

import pytest  # noqa: E402

from node import machine  # noqa: E402


def main(arguments: Sequence[str]) -> int:
    """Run the tests; 0, after saying why, where this machine can't."""
    if given := os.environ.get(machine.GIVEN):
        if not Path(given).is_file():
            print(f"{machine.GIVEN} names no file: {given}", file=sys.stderr)
            return 2
    elif reason := machine.why_not():
        print(f"nothing was tested on a node: {reason}.")
        return 0
    return pytest.main(["-m", "node", *arguments, str(Path(__file__).parent)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
