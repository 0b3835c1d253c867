"""What `polaris load` makes of files, and how it speaks of those that it can't use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson


@dataclass(frozen=True)
class Options:
    """What a person said about all documents of a load."""

    prefix: str | None = None
    """Put before the ids; None: the name of the folder that was given."""
    uri_base: str = ""
    """Put before the paths to make uris; empty: documents have the uris that they name themselves."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    encoding: str | None = None
    """Of files that do not say; None: UTF-8, else Windows-1252 where it reads so."""


@dataclass(frozen=True)
class Content:
    """What was found in a file."""

    text: str
    title: str | None = None
    uri: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    assumed: str | None = None
    """The encoding that had to be assumed."""


@dataclass(frozen=True)
class Line:
    """A document as a line of NDJSON, and where it comes from."""

    source: str
    """The file, or the file and its line."""
    data: bytes
    id: str | None = None
    """The document's; None: the line came as it is."""
    assumed: str | None = None
    """The encoding that had to be assumed."""


@dataclass(frozen=True)
class Refused:
    """A document, or a file, that can't be loaded; `why` goes on where `source` ends."""

    source: str
    why: str

    def __str__(self) -> str:
        return f"{self.source} {self.why}"


@dataclass(frozen=True)
class Skipped:
    """A file that is none of ours to load."""

    path: Path
    why: str


@dataclass(frozen=True)
class Found:
    """A file of a load."""

    file: Path
    name: str
    """Its path below what was given, with slashes."""
    prefix: str
    """Put before the name to make the id."""
    named: bool
    """Whether it was given itself, not a folder that holds it."""

    @property
    def id(self) -> str:
        """The document's, the same wherever the folder lies."""
        return f"{self.prefix.rstrip('/')}/{self.name}" if self.prefix else self.name


def line(found: Found, content: Content, options: Options) -> Line:
    """Return a file's document as a line."""
    uri = content.uri or (options.uri_base + quote(found.name) if options.uri_base else None)
    document = {
        "id": found.id,
        "text": content.text,
        "title": content.title,
        "uri": uri,
        "attributes": {**options.attributes, **content.attributes},
    }
    data = orjson.dumps({key: value for key, value in document.items() if value})
    return Line(str(found.file), data, found.id, content.assumed)
