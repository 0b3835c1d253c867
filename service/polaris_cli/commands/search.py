"""`polaris search NAME TEXT`."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from polaris.settings import ClientSettings
from polaris_cli import names, show
from polaris_cli.client import Service
from polaris_cli.flags import Format, Output, WrongUsage, with_settings

Filter = Annotated[
    str | None, typer.Option("--filter", metavar="JSON", help='Such as \'{"eq": ["lang", "pt"]}\'.')
]
Words = Annotated[list[str], typer.Argument(metavar="TEXT...", help="What to look for; words or a sentence.")]


@with_settings(ClientSettings)
def search(
    name: names.Name,
    text: Words,
    *,
    k: Annotated[int, typer.Option("-k", help="How many passages.", min=1)] = 5,
    filter_: Filter = None,
    mode: Annotated[str | None, typer.Option(help="How to search; the index's own where not said.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Also say how it was searched.")] = False,
    output: Output = Format.TEXT,
    settings: ClientSettings,
) -> None:
    """Find passages in an index."""
    index = names.parse(name)
    asked = {
        "query": " ".join(text),
        "k": k,
        "filter": parse_filter(filter_),
        "mode": mode,
        "explain": explain or None,
    }
    with Service(settings) as service:
        found = service.post(f"{index.path}/search", given(asked))
    if output is Format.JSON:
        show.json_out(found)
        return
    _print(found, explain=explain)


def given(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was said of a request's body."""
    return {key: value for key, value in body.items() if value is not None}


def parse_filter(text: str | None) -> Any:
    """Return a filter as the service takes it; WrongUsage where it is no JSON object."""
    if text is None:
        return None
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise WrongUsage(f"--filter is not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise WrongUsage('--filter must be a JSON object, such as {"eq": ["lang", "pt"]}')
    return parsed


def _print(found: Mapping[str, Any], *, explain: bool) -> None:
    for rank, hit in enumerate(found["hits"], 1):
        start, end = hit["span"]
        title = f"  {hit['title']}" if hit.get("title") else ""
        print(show.clean(f"{rank}. {hit['document']} [{start}:{end}]  {hit['score']:.3f}{title}"))
        print(textwrap.indent(show.clean(_excerpt(hit["text"])), "   "))
        print()
    if not found["hits"]:
        show.say("nothing was found")
    if found.get("degraded"):
        show.say(f"degraded: {', '.join(found['degraded'])}")
    if explain:
        rest = {key: value for key, value in found.items() if key != "hits"}
        show.json_out(rest)


def _excerpt(text: str, width: int = 96, lines: int = 4) -> str:
    """Return the beginning of a passage, filled to lines."""
    return "\n".join(textwrap.wrap(" ".join(text.split()), width, max_lines=lines, placeholder=" …"))
