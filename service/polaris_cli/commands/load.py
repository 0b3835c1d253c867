"""`polaris load NAME PATH…`."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from polaris.settings import ClientSettings
from polaris_cli import names, show
from polaris_cli.client import Service
from polaris_cli.flags import Format, Output, WrongUsage, with_settings
from polaris_cli.load import files
from polaris_cli.load.document import Options, Skipped
from polaris_cli.load.send import Loader, Summary

_NAMED = 5


@with_settings(ClientSettings)
def load(
    name: names.Name,
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files and folders.")],
    *,
    prefix: Annotated[
        str | None, typer.Option(help="Before the ids. [the name of the folder that is given]")
    ] = None,
    uri_base: Annotated[str, typer.Option(help="Before the paths, to make the documents' uris.")] = "",
    attribute: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Of all documents; may be repeated.")
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(help="Of text files. [UTF-8, else Windows-1252 where it reads so]")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Return only when all of it can be found.")] = True,
    output: Output = Format.TEXT,
    settings: ClientSettings,
) -> None:
    """Put files into an index: text, Markdown, HTML, PDF, NDJSON.

    A file's id is the name of the folder that is given, and its path below: loading again updates.
    """
    index = names.parse(name)
    options = Options(prefix, uri_base, _attributes(attribute or ()), _known(encoding))
    files.check(paths)
    began = time.monotonic()
    with Service(settings) as service:
        loader = Loader(service, index, show.say)
        with show.meter(f"loading into {index}", files.count_documents(paths)) as meter:
            loader.load(files.documents(paths, options), meter)
        if wait and loader.summary.new:
            with show.meter("making it searchable") as meter:
                loader.wait(meter)
    _report(loader.summary, index, paths, waited=wait, seconds=time.monotonic() - began, output=output)
    if loader.summary.refused or not loader.summary.documents:
        raise typer.Exit(1)


def _report(
    summary: Summary,
    index: names.IndexName,
    paths: Sequence[Path],
    *,
    waited: bool,
    seconds: float,
    output: Format,
) -> None:
    _say_assumed(summary)
    _say_skipped(summary.skipped)
    if not summary.documents and not summary.refused:
        show.say(f"there is nothing to load in {', '.join(map(str, paths))}")
    if output is Format.JSON:
        show.json_out(_json(summary, index, waited=waited, seconds=seconds))
        return
    searchable = ", searchable" if waited else ""
    refused = f", {_count(len(summary.refused), 'refused', 'refused')}" if summary.refused else ""
    print(
        f"{_count(summary.documents, 'document', 'documents')} in {index}:"
        f" {summary.new:,} new or changed, {summary.unchanged:,} as before{refused}"
        f" ({seconds:.1f} s{searchable})"
    )


def _say_assumed(summary: Summary) -> None:
    if summary.assumed:
        sources = [line.source for line in summary.assumed]
        shown = ", ".join(sources[:_NAMED]) + (", …" if len(sources) > _NAMED else "")
        encoding = summary.assumed[0].assumed
        show.say(
            f"{_count(len(sources), 'file was', 'files were')} not UTF-8, and read as {encoding}: {shown}"
        )


def _say_skipped(skipped: Sequence[Skipped]) -> None:
    kinds = Counter(f"{item.path.suffix or item.path.name} {item.why}" for item in skipped)
    for kind, number in kinds.most_common():
        show.say(f"skipped {_count(number, 'file', 'files')}: {kind}")


def _json(summary: Summary, index: names.IndexName, *, waited: bool, seconds: float) -> dict[str, Any]:
    return {
        "index": str(index),
        "new": summary.new,
        "unchanged": summary.unchanged,
        "refused": [{"source": item.source, "why": item.why} for item in summary.refused],
        "skipped": [{"source": str(item.path), "why": item.why} for item in summary.skipped],
        "assumed": [{"source": line.source, "encoding": line.assumed} for line in summary.assumed],
        "sequence": summary.sequence,
        "searchable": waited,
        "seconds": round(seconds, 3),
    }


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _attributes(pairs: Sequence[str]) -> dict[str, Any]:
    return dict(map(_attribute, pairs))


def _attribute(pair: str) -> tuple[str, Any]:
    """Return key and value: numbers, true and false as such, everything else as text."""
    key, equals, text = pair.partition("=")
    if not key or not equals:
        raise WrongUsage(f"--attribute {pair!r} is not KEY=VALUE")
    try:
        value = json.loads(text)
    except ValueError:
        return key, text
    return key, value if isinstance(value, str | int | float | bool) else text


def _known(encoding: str | None) -> str | None:
    if encoding is not None:
        try:
            "x".encode(encoding)
        except (LookupError, UnicodeError):
            raise WrongUsage(f"nobody knows an encoding {encoding!r}") from None
    return encoding
