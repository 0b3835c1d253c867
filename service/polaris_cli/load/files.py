"""From paths to documents: walks folders, reads files one at a time, and gives ids that stay.

The id of a file is the name of the folder that was given, and the path below it: `handbook/pt/a.md`
for `polaris load NAME …/handbook`, wherever the folder lies. So loading again is an update.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import TypeAlias

import orjson

from polaris_cli.flags import WrongUsage
from polaris_cli.load import formats
from polaris_cli.load.document import Found, Line, Options, Refused, Skipped, line
from polaris_cli.load.encoding import Binary, NotText

Item: TypeAlias = "Line | Refused | Skipped"

_LONGEST_LINE = 64 * 2**20


def check(paths: Sequence[Path]) -> None:
    """Raise WrongUsage where a path does not exist, before anything is sent."""
    for path in paths:
        if not path.exists():
            raise WrongUsage(f"there is no file or folder {path}")


def count_documents(paths: Sequence[Path]) -> int:
    """Return how many documents there will be, at most; for progress."""
    return sum(_count(found.file) for path in paths for found in _walk(path, Options()))


def _count(file: Path) -> int:
    if file.suffix.lower() not in formats.NDJSON:
        return 1
    try:
        with file.open("rb") as opened:
            return sum(block.count(b"\n") for block in iter(lambda: opened.read(2**20), b"")) or 1
    except OSError:
        return 1


def documents(paths: Sequence[Path], options: Options) -> Iterator[Item]:
    """Yield the documents of files and folders, in the order of the paths, then of names.

    A file is read when its turn comes, so memory holds one of them.
    """
    seen: set[str] = set()
    for path in paths:
        for found in _walk(path, options):
            for item in _read(found, options):
                yield _once(item, seen)


def _walk(path: Path, options: Options) -> Iterator[Found]:
    """Yield a file itself, or the files of a folder in order.

    Hidden ones are left out; links to folders are not followed, so no walk is without end.
    """
    if not path.is_dir():
        yield Found(path, path.name, options.prefix or "", named=True)
        return
    prefix = path.resolve().name if options.prefix is None else options.prefix
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                file = Path(folder, name)
                yield Found(file, file.relative_to(path).as_posix(), prefix, named=False)


def _once(item: Item, seen: set[str]) -> Item:
    """Refuse a second file with the id of an earlier one; lines of NDJSON may repeat themselves."""
    if not isinstance(item, Line) or item.id is None:
        return item
    if item.id in seen:
        return Refused(item.source, f"has the id of another file of this load, {item.id}: use --prefix")
    seen.add(item.id)
    return item


def _read(found: Found, options: Options) -> Iterator[Item]:
    try:
        if found.file.suffix.lower() in formats.NDJSON:
            yield from _ndjson(found.file)
        else:
            yield _document(found, options)
    except NotText as error:
        loud = found.named or not isinstance(error, Binary)
        yield (Refused(str(found.file), str(error)) if loud else Skipped(found.file, str(error)))
    except OSError as error:
        yield Refused(str(found.file), f"can't be read: {error.strerror or error}")


def _document(found: Found, options: Options) -> Item:
    reader = formats.reader_of(found.file, named=found.named)
    if reader is None:
        return Skipped(found.file, f"is none of {formats.KNOWN}")
    content = reader(found.file, options.encoding)
    if not content.text.strip():
        return Refused(str(found.file), "holds no text")
    try:
        return line(found, content, options)
    except (orjson.JSONEncodeError, UnicodeEncodeError):
        return Refused(str(found.file), "has a name that is no Unicode")


def _ndjson(file: Path) -> Iterator[Item]:
    """Yield the lines of NDJSON as they are; whether each is a document, the service says."""
    with file.open("rb") as opened:
        for number in count(1):
            data = opened.readline(_LONGEST_LINE + 1)
            if not data:
                return
            source = f"{file}:{number}"
            if len(data) > _LONGEST_LINE:
                yield Refused(source, f"is longer than {_LONGEST_LINE // 2**20} MiB: is this NDJSON?")
                return
            if data.strip():
                yield Line(source, data.strip())
