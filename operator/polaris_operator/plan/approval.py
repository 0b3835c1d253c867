"""Whether somebody has to agree to a plan, and what the agreement names.

An approval is of a change, not of its next steps: what an index is to become, from what it is, and all
that is lost on the way. So it holds from the first step to the last, through crashes and whatever is
mended meanwhile, and rows that arrive are no matter to it. Once what would be lost is another thing, so
is the hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from polaris.spec import Approval, PolarisIndexSpec
from polaris.status import Reason
from polaris_operator.plan.aim import controls_aside
from polaris_operator.steps import Blocked, Step, statements
from polaris_operator.world.index import IndexWorld


def plan_hash(spec: PolarisIndexSpec, world: IndexWorld, steps: Sequence[Step]) -> str:
    """Return what names a plan, `sha256:…`: whatever the time, the row counts and the logins are."""
    subject = world.subject
    named = {
        "spec": _asked(spec.model_dump(mode="json", by_alias=True)),
        "made": _asked(subject.spec) if subject and subject.spec else None,
        "serving": subject.serving if subject else None,
        # The statement has the names of what it removes; an action without one is told by its fields.
        "removes": [
            [type(step.action).__name__, statements(step.action) or repr(step.action)]
            for step in steps
            if step.destructive
        ],
    }
    text = json.dumps(named, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _asked(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a spec without what an approval is given, or a plan is looked at, with."""
    asked = {key: value for key, value in spec.items() if key != "suspend"}
    change = {
        key: value
        for key, value in (asked.pop("change", None) or {}).items()
        if key not in ("approval", "approvedPlan")
    }
    return {**asked, "change": change} if change else asked


def apart(spec: PolarisIndexSpec) -> PolarisIndexSpec:
    """Return the spec without the approval: what is done is what was shown before it was given."""
    return spec.model_copy(update={"change": spec.change.model_copy(update={"approved_plan": ""})})


def required(spec: PolarisIndexSpec, made: PolarisIndexSpec | None, steps: Sequence[Step]) -> bool:
    """Whether these steps wait for an approval; `made` is the spec that was made true last."""
    match spec.change.approval:
        case Approval.AUTO:
            return False
        case Approval.DESTRUCTIVE:
            return any(step.destructive for step in steps)
        case Approval.ALL:
            changed = made is None or controls_aside(made, spec) != spec
            return (changed and (made is not None or bool(steps))) or any(s.destructive for s in steps)


def missing(spec: PolarisIndexSpec, world: IndexWorld, steps: Sequence[Step], given: str) -> Blocked | None:
    """Return that the plan waits for its approval; None where that is what was given."""
    name = plan_hash(spec, world, steps)
    if given == name:
        return None
    lost = sum(step.destructive for step in steps)
    what = f"{lost} of {len(steps)} steps remove what can't be made again" if lost else f"{len(steps)} steps"
    void = "; what was approved is another plan" if given else ""
    message = f"the plan waits for approval ({what}){void}: to approve it set change.approvedPlan to {name}"
    return Blocked(Reason.APPROVAL_REQUIRED, message, stalled=True)
