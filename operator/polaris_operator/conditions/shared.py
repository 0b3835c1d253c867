"""What conditions of both kinds have in common.

`Ready` is always there; `Reconciling` and `Stalled` only while they are true: so says kstatus, and
Flux, Argo CD and `kubectl wait` go by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from polaris.errors import (
    ClusterUnavailable,
    Conflict,
    DatabaseRefused,
    DatabaseUnavailable,
    DeadlineExceeded,
    InvalidManifest,
    NotFound,
    NotOwner,
    PolarisError,
    Prerequisite,
    Unsupported,
    VaultRefused,
    VaultUnavailable,
)
from polaris.status import Condition, DatabaseStatus, IndexStatus, Reason
from polaris_operator.objects import Resource
from polaris_operator.steps import Blocked, Plan

Status = Literal["True", "False", "Unknown"]
_MESSAGE_CHARACTERS = 32768


@dataclass(frozen=True)
class Said:
    """A condition without its times."""

    type: str
    status: Status
    reason: Reason
    message: str = ""


# The first that fits, so the narrow ones stand before the wide ones.
_BLOCKED_BY: tuple[tuple[type[PolarisError], Reason, bool], ...] = (
    (InvalidManifest, Reason.INVALID_SPEC, True),
    (Unsupported, Reason.VERSION_UNSUPPORTED, True),
    (Prerequisite, Reason.PREREQUISITE_MISSING, True),
    (DatabaseRefused, Reason.LOGIN_REFUSED, True),
    (VaultRefused, Reason.VAULT_REFUSED, True),
    (NotOwner, Reason.NOT_OWNER, True),
    (NotFound, Reason.SECRET_NOT_FOUND, True),
    (DatabaseUnavailable, Reason.DATABASE_UNAVAILABLE, False),
    (VaultUnavailable, Reason.VAULT_UNAVAILABLE, False),
    (ClusterUnavailable, Reason.CLUSTER_UNAVAILABLE, False),
    (DeadlineExceeded, Reason.RETRYING, False),
    (Conflict, Reason.RETRYING, False),
    (PolarisError, Reason.RETRYING, False),
)


def blocked_by(error: PolarisError) -> Blocked:
    """Return what an error of ours means for an object: the one table of it."""
    reason, stalled = next((r, s) for kind, r, s in _BLOCKED_BY if isinstance(error, kind))
    message = str(error)
    if isinstance(error, Prerequisite) and error.remedy:
        message = f"{message}. An administrator grants it with:\n{error.remedy}"
    return Blocked(reason, message, stalled)


def progress(plan: Plan) -> list[Said]:
    """Return Reconciling and Stalled, where they are true."""
    if plan.blocked is not None:
        kind = "Stalled" if plan.blocked.stalled else "Reconciling"
        return [Said(kind, "True", plan.blocked.reason, plan.blocked.message)]
    if plan.steps:
        return [Said("Reconciling", "True", plan.steps[0].reason, plan.steps[0].sentence)]
    return []


def stamped(
    previous: Mapping[str, Any], said: Iterable[Said], generation: int, now: datetime
) -> list[Condition]:
    """Return conditions whose `lastTransitionTime` is kept where the status is what it was."""
    before = {condition["type"]: condition for condition in previous.get("conditions", ())}
    return [
        Condition(
            type=one.type,
            status=one.status,
            reason=one.reason.value,
            message=one.message[:_MESSAGE_CHARACTERS],
            observed_generation=generation,
            last_transition_time=_since(before.get(one.type), one, now),
        )
        for one in said
    ]


def _since(before: Mapping[str, Any] | None, said: Said, now: datetime) -> datetime:
    if before is not None and before.get("status") == said.status:
        return datetime.fromisoformat(before["lastTransitionTime"])
    return now.replace(microsecond=0)


def interrupted(resource: Resource, blocked: Blocked, now: datetime) -> dict[str, Any]:
    """Return the status of an object that could not be looked at: what was known, and why not now.

    What an index did when it was looked at last says nothing about one whose PostgreSQL is away.
    """
    about_now = ["Ready", "Reconciling", "Stalled"]
    said = [Said("Ready", "False", blocked.reason, blocked.message)]
    served = condition(resource.status, "Serving").get("status", "False") != "False"
    if served and blocked.reason == Reason.DATABASE_UNAVAILABLE:
        about_now.append("Serving")
        said.append(Said("Serving", "Unknown", blocked.reason, blocked.message))
    said += progress(Plan(blocked=blocked))
    others = [c for c in resource.status.get("conditions", ()) if c["type"] not in about_now]
    made = [plain(condition) for condition in stamped(resource.status, said, resource.generation, now)]
    return {
        **resource.status,
        "observedGeneration": resource.generation,
        "conditions": [made[0], *others, *made[1:]],
    }


def plain(model: Condition | DatabaseStatus | IndexStatus) -> dict[str, Any]:
    """Return JSON by outside names, nothing unset, times in whole seconds."""
    found: dict[str, Any] = _seconds(model.model_dump(mode="python", by_alias=True, exclude_none=True))
    return found


def _seconds(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%dT%H:%M:%SZ")
    if isinstance(value, dict):
        return {key: _seconds(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_seconds(item) for item in value]
    return value


def condition(status: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """Return one condition of a status as JSON; {} where it is not there."""
    found: Sequence[Mapping[str, Any]] = status.get("conditions", ())
    return next((one for one in found if one["type"] == kind), {})
