"""`polaris ask NAME TEXT`."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer

from polaris.errors import Unavailable
from polaris.settings import ClientSettings
from polaris_cli import names, show
from polaris_cli.client import Service, problem
from polaris_cli.commands.search import Filter, Words, given, parse_filter
from polaris_cli.flags import Format, Output, with_settings


@with_settings(ClientSettings)
def ask(
    name: names.Name,
    text: Words,
    *,
    k: Annotated[int | None, typer.Option("-k", help="How many passages to answer from.", min=1)] = None,
    filter_: Filter = None,
    output: Output = Format.TEXT,
    settings: ClientSettings,
) -> None:
    """Ask an index a question; the answer cites its sources."""
    index = names.parse(name)
    body = given({"question": " ".join(text), "k": k, "filter": parse_filter(filter_)})
    path = f"{index.path}/answer"
    with Service(settings) as service:
        if output is Format.TEXT and sys.stdout.isatty():
            answer = _as_it_comes(service.events(path, {**body, "stream": True}))
        else:
            answer = service.post(path, body)
            if output is Format.TEXT:
                print(show.clean(answer["answer"]))
    if output is Format.JSON:
        show.json_out(answer)
    else:
        _print_sources(answer)


def _as_it_comes(events: Iterable[tuple[str, Any]]) -> Any:
    """Print an answer while it is written, and return it; what comes last decides."""
    shown = ""
    for name, value in events:
        if name == "delta":
            shown += value["text"]
            print(show.clean(value["text"]), end="", flush=True)
        elif name == "error":
            print()
            raise problem(value["status"], value)
        elif name == "answer":
            final = "" if value["answer"].strip() == shown.strip() else show.clean(value["answer"])
            print(f"\n{final}" if shown and final else final)
            return value
    raise Unavailable("the answer broke off")


def _print_sources(answer: Mapping[str, Any]) -> None:
    if answer.get("citations"):
        print("\nSources")
    for citation in answer.get("citations") or ():
        start, end = citation["span"]
        place = f"{citation['document']} (version {citation['version']}) [{start}:{end}]"
        quoted = textwrap.shorten(citation["text"], 90, placeholder=" …")
        print(show.clean(f"  [{citation['marker']}] {place}\n      “{quoted}”"))
    if answer.get("degraded"):
        show.say(f"degraded: {', '.join(answer['degraded'])}")
