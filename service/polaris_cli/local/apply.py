"""Manifests made true: by the operator of `polaris up` where one works with the data folder, else here."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from polaris.errors import Conflict, PolarisError
from polaris.spec import PolarisIndexSpec, parse_spec
from polaris_cli import checks
from polaris_cli.local import manifests
from polaris_cli.local.plan import admitted
from polaris_operator.folder import FolderObjects, peek
from polaris_operator.main import Operator
from polaris_operator.manifests import Manifest
from polaris_operator.objects import Key, Resource
from polaris_operator.reconcile import Reconciler

Tell = Callable[[str], None]
"""Called with a sentence about what is done, or waited for."""

_LOOK_SECONDS = 0.2
# Another process may say so of a moment in which it had not looked at all.
_STALLED_SECONDS = 3.0


@dataclass(frozen=True)
class Outcome:
    """What one object came to: its condition Ready, or what stands in the way."""

    key: Key
    ready: bool
    reason: str
    message: str


def apply(wanted: Sequence[Manifest], data: Path, seconds: float, tell: Tell) -> list[Outcome]:
    """Put manifests into the data folder, have them made true, and return what each came to.

    Gives up waiting after so many seconds; what is under way goes on with the next operator.
    Raises InvalidManifest before anything is written, Conflict where another operator has the folder.
    """
    manifests.check_changes(wanted, data)
    deadline = time.monotonic() + seconds
    if checks.running(data) is not None:
        manifests.put(wanted, data)
        return [_watch(manifest, data, deadline, tell) for manifest in wanted]
    if peek(data) and not (data / manifests.FOLDER).is_dir():
        raise Conflict(f"{data} belongs to an operator over another folder of manifests: apply it there")
    manifests.put(wanted, data)
    with closing(FolderObjects(data / manifests.FOLDER, data)) as objects, _steps_told(tell):
        return _reconcile(objects, [manifest.key for manifest in wanted], deadline, tell)


def outcome(resource: Resource) -> Outcome | None:
    """Return what an object came to; None while it is on its way."""
    if resource.status.get("observedGeneration") != resource.generation:
        return None
    said = {each["type"]: each for each in resource.status.get("conditions", ())}
    ready, stalled = said.get("Ready", {}), said.get("Stalled")
    if ready.get("status") == "True":
        return Outcome(resource.key, True, ready["reason"], ready.get("message", ""))
    if stalled:
        return Outcome(resource.key, False, stalled["reason"], stalled.get("message", ""))
    return None


# --- by the operator of `polaris up` -----------------------------------------------------------


def _watch(manifest: Manifest, data: Path, deadline: float, tell: Tell) -> Outcome:
    said, stalled = "", 0.0
    while True:
        present = _present(manifest, data)
        reached = outcome(present) if present else None
        if reached and reached.ready:
            return reached
        stalled = (stalled or time.monotonic()) if reached else 0.0
        if reached and time.monotonic() > stalled + _STALLED_SECONDS:
            return reached
        if time.monotonic() > deadline:
            return _late(manifest.key, present)
        if (now := _waits_for(manifest.key, present)) != said:
            said = now
            tell(said)
        time.sleep(_LOOK_SECONDS)


def _present(manifest: Manifest, data: Path) -> Resource | None:
    """Return the object once the operator has taken this manifest over."""
    for present in peek(data):
        if (present.key, present.spec, present.annotations) == (
            manifest.key,
            manifest.spec,
            manifest.annotations,
        ):
            return present
    return None


# --- in this process ---------------------------------------------------------------------------


def _reconcile(objects: FolderObjects, keys: Sequence[Key], deadline: float, tell: Tell) -> list[Outcome]:
    objects.look()
    wanted = [admitted(objects, key) for key in keys]
    operator = Operator(objects)

    def settle(key: Key) -> Outcome:
        return _settle(objects, operator.reconciler, key, deadline, tell)

    try:
        for database in {_database(resource) for resource in wanted} - {None, *keys}:
            if database is not None and objects.get(database) is not None:
                settle(database)
        came_to = [settle(key) for key in keys]
        while operator.databases.measuring() and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)
        # Nobody else writes down in the status what was measured since.
        return [settle(outcome.key) if outcome.ready else outcome for outcome in came_to]
    finally:
        operator.databases.close_all()


def _database(resource: Resource) -> Key | None:
    """Return the PolarisDatabase of an index."""
    if resource.key.kind != "PolarisIndex":
        return None
    reference = parse_spec(PolarisIndexSpec, resource.spec).database_ref
    return Key("PolarisDatabase", reference.namespace or resource.key.namespace, reference.name)


def _settle(objects: FolderObjects, reconciler: Reconciler, key: Key, deadline: float, tell: Tell) -> Outcome:
    said = ""
    while True:
        # What goes wrong stands in the object's status already.
        with suppress(PolarisError):
            reconciler.reconcile(key)
        present = objects.get(key)
        reached = outcome(present) if present else None
        if reached:
            return reached
        if time.monotonic() > deadline:
            return _late(key, present)
        if (now := _waits_for(key, present)) != said:
            said = now
            tell(said)
        time.sleep(_LOOK_SECONDS)


# --- words -------------------------------------------------------------------------------------


def _late(key: Key, present: Resource | None) -> Outcome:
    reason, message = _ready(present)
    return Outcome(key, False, reason, f"not ready in time: {message}")


def _waits_for(key: Key, present: Resource | None) -> str:
    reason, message = _ready(present)
    return f"{key}: {reason}: {message}"


def _ready(present: Resource | None) -> tuple[str, str]:
    """Return reason and message of the condition Ready, as far as they are about this manifest."""
    if present and present.status.get("observedGeneration") == present.generation:
        for each in present.status.get("conditions", ()):
            if each["type"] == "Ready":
                return each["reason"], each.get("message", "")
    return "Pending", "the operator has not looked at it yet"


class _Steps(logging.Handler):
    """Hands on the sentences of steps that are carried out."""

    def __init__(self, tell: Tell) -> None:
        super().__init__(logging.INFO)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        said = record.msg
        if isinstance(said, dict) and said.get("event") == "step":
            self._tell(f"{said['object']}: {said['sentence']}")


@contextmanager
def _steps_told(tell: Tell) -> Iterator[None]:
    """Tell a person of each step; the log has them as well."""
    log = logging.getLogger("polaris_operator.apply")
    handler, before = _Steps(tell), (log.level, log.propagate)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = logging.getLogger().isEnabledFor(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before[0])
        log.propagate = before[1]
