"""`polaris plan -f PATH`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from polaris.settings import FolderSettings
from polaris.telemetry import configure_logging
from polaris_cli import show
from polaris_cli.flags import Format, Output, with_settings
from polaris_cli.local import manifests
from polaris_cli.local.plan import Planned
from polaris_cli.local.plan import plan as plan_all
from polaris_operator.steps import Step, statements

Files = Annotated[
    list[Path], typer.Option("-f", "--file", metavar="PATH", help="Manifests: a file or a folder.")
]


@with_settings(FolderSettings)
def plan(*, file: Files, output: Output = Format.TEXT, settings: FolderSettings) -> None:
    """Show what manifests would change, statement by statement; nothing is changed."""
    configure_logging(settings.log_level)
    planned = plan_all(manifests.read(file), settings.data)
    if output is Format.JSON:
        show.json_out([_json(each) for each in planned])
        return
    for each in planned:
        print("\n".join(_lines(each)))


def _lines(planned: Planned) -> Iterable[str]:
    plan = planned.plan
    yield f"{planned.key}: {_count(plan.steps) if plan.steps or not plan.blocked else 'waits'}"
    yield from _steps(plan.steps)
    if plan.blocked:
        yield f"  {plan.blocked.reason}: {plan.blocked.message}"
    if plan.withheld:
        yield f"  withheld until then: {_count(plan.withheld)}"
        yield from _steps(plan.withheld)


def _steps(steps: Sequence[Step]) -> Iterable[str]:
    for number, step in enumerate(steps, 1):
        mark = " DESTRUCTIVE" if step.destructive else ""
        yield show.clean(f"  {number}. {step.sentence} ({step.reason}){mark}")
        if statement := statements(step.action):
            yield textwrap.indent(show.clean(f"{statement};"), "       ")


def _count(steps: Sequence[Step]) -> str:
    return {0: "nothing to do", 1: "1 step"}.get(len(steps), f"{len(steps)} steps")


def _json(planned: Planned) -> dict[str, Any]:
    plan, key = planned.plan, planned.key
    blocked = plan.blocked
    return {
        "kind": key.kind,
        "namespace": key.namespace,
        "name": key.name,
        "hash": planned.hash,
        "steps": [_step(step) for step in plan.steps],
        "withheld": [_step(step) for step in plan.withheld],
        "blocked": blocked
        and {"reason": blocked.reason, "message": blocked.message, "stalled": blocked.stalled},
    }


def _step(step: Step) -> dict[str, Any]:
    return {
        "reason": step.reason,
        "sentence": step.sentence,
        "statement": statements(step.action),
        "destructive": step.destructive,
    }
