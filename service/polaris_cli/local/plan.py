"""What would be done about manifests, by the operator's own core; nothing is changed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from polaris.errors import InvalidManifest, PolarisError
from polaris.spec import PolarisDatabaseSpec, PolarisIndexSpec, parse_spec
from polaris.status import Reason
from polaris_cli.local import manifests
from polaris_operator.collector import collect
from polaris_operator.conditions.shared import blocked_by
from polaris_operator.databases import Databases
from polaris_operator.doors import Doors
from polaris_operator.folder import FolderObjects
from polaris_operator.main import Operator
from polaris_operator.manifests import Manifest
from polaris_operator.objects import Key, Resource
from polaris_operator.postgres import Fence
from polaris_operator.preview import Planned, look
from polaris_operator.sides.database import Database
from polaris_operator.steps import Blocked, Plan
from polaris_operator.world.database import DatabaseWorld


def plan(wanted: Sequence[Manifest], data: Path) -> Iterator[Planned]:
    """Yield what would be done about each object, as things are now.

    Works on a copy of what the data folder knows, so it may run beside an operator.
    Raises InvalidManifest for a change that is always refused.
    """
    manifests.check_changes(wanted, data)
    with ExitStack() as stack:
        copy = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="polaris-plan-")))
        _copy(data, copy)
        manifests.put(wanted, copy)
        objects = stack.enter_context(closing(FolderObjects(copy / manifests.FOLDER, copy)))
        objects.look()
        databases = Operator(objects).databases
        stack.callback(databases.close_all)
        for manifest in wanted:
            yield _planned(objects, databases, manifest.key)


def admitted(objects: FolderObjects, key: Key) -> Resource:
    """Return an object after a look; InvalidManifest with what stands against it."""
    resource = objects.get(key)
    if (problem := objects.problems.get(str(key))) is not None or resource is None:
        raise InvalidManifest(problem or f"{key} was not admitted")
    return resource


def _copy(data: Path, copy: Path) -> None:
    for folder in ("objects", manifests.FOLDER):
        if (data / folder).is_dir():
            shutil.copytree(data / folder, copy / folder)
    if (data / "installation").is_file():
        shutil.copy(data / "installation", copy)
    if (data / "secrets").is_dir():
        (copy / "secrets").symlink_to((data / "secrets").absolute())


def _planned(objects: FolderObjects, databases: Databases, key: Key) -> Planned:
    resource = admitted(objects, key)
    now = datetime.now(UTC)
    try:
        if key.kind == "PolarisDatabase":
            spec = parse_spec(PolarisDatabaseSpec, resource.spec)
            doors = databases.open(resource, spec)
            return Planned(
                key, Database(collect).plan(resource, spec, _world(resource, spec, doors, now), now)
            )
        return _plan_index(objects, databases, resource, now)
    except PolarisError as error:
        return Planned(key, Plan(blocked=blocked_by(error)))


def _world(resource: Resource, spec: PolarisDatabaseSpec, doors: Doors, now: datetime) -> DatabaseWorld:
    """Return the world of a database as whoever takes over would see it; only then all can be seen."""
    side = Database(collect)
    world = side.gather(resource, spec, doors, now)
    if world.catalog and world.catalog.fence:
        seen = world.catalog.fence
        doors.postgres.fence = Fence(world.process.installation, seen.epoch, seen.holder)
        try:
            world = side.gather(resource, spec, doors, now)
        finally:
            doors.postgres.fence = None
    # Our own login is for this look only, and no concern of the database.
    return replace(world, own=None)


def _plan_index(objects: FolderObjects, databases: Databases, resource: Resource, now: datetime) -> Planned:
    spec = parse_spec(PolarisIndexSpec, resource.spec)
    reference = spec.database_ref
    key = Key("PolarisDatabase", reference.namespace or resource.key.namespace, reference.name)
    database = objects.get(key)
    if database is None:
        missing = Blocked(Reason.DATABASE_NOT_FOUND, f"there is no {key}", stalled=True)
        return Planned(resource.key, Plan(blocked=missing))
    _settle(databases, database, now)
    doors = databases.find(key, resource.key.namespace)
    if doors is None or isinstance(doors, Blocked):
        return Planned(resource.key, Plan(blocked=doors))
    return look(resource, doors, now)


def _settle(databases: Databases, database: Resource, now: datetime) -> None:
    """Open an index's database as a pass over it would, without doing anything about it."""
    spec = parse_spec(PolarisDatabaseSpec, database.spec)
    world = _world(database, spec, databases.open(database, spec), now)
    blocked = Database(collect).in_the_way(spec, world)
    if blocked is None and world.catalog is None:
        message = "it has no catalog yet; apply it first"
        blocked = Blocked(Reason.DATABASE_NOT_READY, f"{database.key}: {message}", stalled=False)
    allowed = frozenset(spec.allowed_namespaces or [database.key.namespace])
    databases.settle(database.key, allowed, blocked)
