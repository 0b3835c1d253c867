"""`polaris ask NAME TEXT`."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from polaris.settings import ClientSettings
from polaris_cli import names, show
from polaris_cli.client import Service
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
    with Service(settings) as service:
        answer = service.post(f"{index.path}/answer", body)
    if output is Format.JSON:
        show.json_out(answer)
        return
    _print(answer)


def _print(answer: Mapping[str, Any]) -> None:
    print(show.clean(answer["answer"]))
    if answer.get("citations"):
        print("\nSources")
    for citation in answer.get("citations") or ():
        start, end = citation["span"]
        place = f"{citation['document']} (version {citation['version']}) [{start}:{end}]"
        quoted = textwrap.shorten(citation["text"], 90, placeholder=" …")
        print(show.clean(f"  [{citation['marker']}] {place}\n      “{quoted}”"))
    if answer.get("degraded"):
        show.say(f"degraded: {', '.join(answer['degraded'])}")
