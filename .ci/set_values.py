"""Set values of a chart in place, with their comments: `set_values.py values.yaml image.digest=sha256:…`.

Only plain values that stand on a line of their own below plain keys; anything else is an error.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path

_LINE = re.compile(r"( *)([A-Za-z][A-Za-z0-9]*):( .*)?$")


def with_values(text: str, values: Mapping[str, str]) -> str:
    """Return the YAML with those paths set to those strings; KeyError with what is not there."""
    left, path, lines = dict(values), [], []
    for line in text.splitlines():
        found = _LINE.fullmatch(line)
        if found:
            indent, key, value = found.groups()
            path = [*path[: len(indent) // 2], key]
            if value is not None and (name := ".".join(path)) in left:
                lines.append(f"{indent}{key}: {json.dumps(left.pop(name))}")
                continue
        lines.append(line)
    if left:
        raise KeyError(", ".join(left))
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    """Set them in a file."""
    file = Path(arguments[0])
    pairs = (pair.partition("=") for pair in arguments[1:])
    file.write_text(with_values(file.read_text("utf-8"), {path: value for path, _, value in pairs}), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
