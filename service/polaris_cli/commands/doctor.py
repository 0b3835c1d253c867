"""`polaris doctor`."""

from __future__ import annotations

from dataclasses import asdict

import typer

from polaris.settings import ClientSettings, UpSettings, WorkerSettings
from polaris_cli import checks, show
from polaris_cli.checks import Verdict
from polaris_cli.flags import Format, Output, read, with_settings

_MARKS = {Verdict.OK: "ok", Verdict.NOTE: "note", Verdict.MISSING: "MISSING"}


@with_settings(UpSettings)
def doctor(*, output: Output = Format.TEXT, settings: UpSettings) -> None:
    """Say what is missing on this machine, and what to do; exit code 1 where 'polaris up' can't work."""
    findings = list(checks.all_checks(settings, read(WorkerSettings), read(ClientSettings)))
    if output is Format.JSON:
        show.json_out([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            print(show.clean(f"{_MARKS[finding.verdict]:8}{finding.about}: {finding.sentence}"))
            if finding.remedy and finding.verdict is not Verdict.OK:
                print(show.clean(f"{'':8}→ {finding.remedy}"))
    if any(finding.verdict is Verdict.MISSING for finding in findings):
        raise typer.Exit(1)
