"""How people name an index on the command line: `namespace/name`, or `name` in `default`."""

from __future__ import annotations

import re
from typing import Annotated, NamedTuple

import typer

from polaris_cli.flags import WrongUsage

# As in polaris.spec, which a client need not import.
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The index: namespace/name, or name.")]


class IndexName(NamedTuple):
    """An index by namespace and name."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def path(self) -> str:
        """Where the service serves it."""
        return f"/v1/indexes/{self.namespace}/{self.name}"


def parse(text: str) -> IndexName:
    """Return the index that a person named; WrongUsage where nothing can be called that."""
    namespace, slash, name = text.rpartition("/")
    namespace = namespace if slash else "default"
    for part in (namespace, name):
        if not _LABEL.fullmatch(part) or len(part) > 63:
            raise WrongUsage(
                f"{text!r} is no name of an index: write namespace/name or name, in lower-case"
                " letters, digits and hyphens"
            )
    return IndexName(namespace, name)
