"""SQL text composed from parts that know what they are.

Both drivers take text, and neither may be handed an identifier as a parameter. `compose` fills named
places of a template with identifiers, literals and other composed text, and takes nothing else, so a
plain string can never end up inside a statement unquoted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeAlias

_PLACE = re.compile(r"\{([a-z_]+)\}")


class Sql(str):
    """Text that is SQL already: a constant of ours, or the result of `compose`."""

    __slots__ = ()


Part: TypeAlias = "Sql | int"


def identifier(*parts: str) -> Sql:
    """Return a quoted name, qualified where several parts are given: `"a"."b"`."""
    if any("\x00" in part or not part for part in parts):
        raise ValueError(f"not an identifier: {parts!r}")
    return Sql(".".join('"' + part.replace('"', '""') + '"' for part in parts))


def literal(value: str) -> Sql:
    """Return a quoted string constant, right for any setting of standard_conforming_strings."""
    if "\x00" in value:
        raise ValueError("a PostgreSQL string cannot hold NUL")
    quoted = "'" + value.replace("'", "''") + "'"
    return Sql("E" + quoted.replace("\\", "\\\\") if "\\" in value else quoted)


def compose(template: str, /, **parts: Part) -> Sql:
    """Fill each `{name}` of the template; TypeError for a part that is a plain string."""

    def fill(match: re.Match[str]) -> str:
        part = parts[match.group(1)]
        if not isinstance(part, Sql | int):
            raise TypeError(f"{match.group(1)} is neither Sql nor int: {part!r}")
        return str(part)

    return Sql(_PLACE.sub(fill, template))


def join(separator: str, parts: Iterable[Sql]) -> Sql:
    """Return the parts, composed already, with a separator between them."""
    return Sql(separator.join(parts))
