"""`polaris plan -f PATH`: by what this machine can reach, or asked of an operator by `--server`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from polaris.errors import InvalidManifest, Unavailable
from polaris.settings import ClientSettings, FolderSettings
from polaris.telemetry import configure_logging
from polaris_cli import show
from polaris_cli.flags import Format, Output, WrongUsage, read, with_settings
from polaris_cli.local import manifests
from polaris_operator.manifests import Manifest, document_of

Files = Annotated[
    list[Path], typer.Option("-f", "--file", metavar="PATH", help="Manifests: a file or a folder.")
]
Server = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Ask the operator there, which can reach the database, such as https://polaris-operator.polaris.svc:9090.",
    ),
]
TokenFile = Annotated[
    str | None, typer.Option(metavar="FILE", help="With --server: the token to show. [POLARIS_TOKEN_FILE]")
]
CaFile = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="With --server: the authorities (PEM) believed about its certificate. [POLARIS_CA_FILE]",
    ),
]


@with_settings(FolderSettings)
def plan(
    *,
    file: Files,
    server: Server = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    output: Output = Format.TEXT,
    settings: FolderSettings,
) -> None:
    """Show what manifests would change, statement by statement; nothing is changed."""
    configure_logging(settings.log_level)
    if server is None and (token_file or ca_file):
        raise WrongUsage("--token-file and --ca-file go with --server only")
    wanted = manifests.read(file)
    if server is None:
        planned = _here(wanted, settings.data)
    else:
        flags = {"server": server, "token_file": token_file, "ca_file": ca_file}
        planned = _asked(wanted, read(ClientSettings, flags))
    if output is Format.JSON:
        show.json_out(list(planned))
        return
    for each in planned:
        print("\n".join(lines(each)))


def _here(wanted: Sequence[Manifest], data: Path) -> Iterator[Mapping[str, Any]]:
    from polaris_cli.local.plan import plan as plan_all
    from polaris_operator.preview import document

    yield from map(document, plan_all(wanted, data))


def _asked(wanted: Sequence[Manifest], asking: ClientSettings) -> Iterator[Mapping[str, Any]]:
    """Yield what the operator answers about each index; of databases it plans none."""
    from polaris_cli.client import Service, Unreachable

    indexes = [manifest for manifest in wanted if manifest.key.kind == "PolarisIndex"]
    if not indexes:
        raise InvalidManifest("a server plans PolarisIndexes only, and there is none among the manifests")
    if others := len(wanted) - len(indexes):
        show.say(f"{others} manifests are left out: a server plans PolarisIndexes only")
    with Service(asking) as operator:
        for manifest in indexes:
            ask = partial(operator.post, "/v1/plan", document_of(manifest))
            try:
                yield operator.patiently(ask, show.say)
            except Unreachable:
                raise Unavailable(f"no operator answers at {asking.server}") from None


def lines(planned: Mapping[str, Any]) -> Iterable[str]:
    """Yield the lines of one object's plan, for people; `planned` is JSON as `preview.document` makes it."""
    steps, withheld, blocked = planned["steps"], planned["withheld"], planned["blocked"]
    named = f"{planned['kind']} {planned['namespace']}/{planned['name']}"
    yield show.clean(f"{named}: {_count(steps) if steps or not blocked else 'waits'}")
    yield from _steps(steps)
    if blocked:
        yield show.clean(f"  {blocked['reason']}: {blocked['message']}")
    if withheld:
        yield f"  withheld until then: {_count(withheld)}"
        yield from _steps(withheld)
    if aside := [step for step in planned["aside"] if step["statement"]]:
        yield f"  afterwards, with nobody waiting for it: {_count(aside)}"
        yield from _steps(aside)


def _steps(steps: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    for number, step in enumerate(steps, 1):
        mark = " DESTRUCTIVE" if step["destructive"] else ""
        yield show.clean(f"  {number}. {step['sentence']} ({step['reason']}){mark}")
        if statement := step["statement"]:
            yield textwrap.indent(show.clean(f"{statement};"), "       ")


def _count(steps: Sequence[Any]) -> str:
    return {0: "nothing to do", 1: "1 step"}.get(len(steps), f"{len(steps)} steps")
