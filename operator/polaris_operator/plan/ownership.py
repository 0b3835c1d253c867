"""Whose index is it: claimed anew, taken up again, adopted, or somebody else's.

An index belongs to (installation, namespace and name, uid). What was released is taken up again by
an object of the same namespace and name, wherever it lives: deleted and applied again, a rebuilt
cluster, a restored backup. Anything else needs the annotation `polaris.dev/adopt`, and stays within its
namespace.
"""

from __future__ import annotations

from polaris import names
from polaris.names import ADOPT_ANNOTATION
from polaris.spec import PolarisIndexSpec
from polaris.sql import Sql, compose, identifier, literal
from polaris.status import Reason
from polaris_operator.objects import Resource
from polaris_operator.plan.deletion import buried, unchanged
from polaris_operator.plan.naming import Naming, owned, tell
from polaris_operator.steps import Blocked, Execute, Step
from polaris_operator.world.index import IndexRow, IndexWorld


def ownership(
    resource: Resource, spec: PolarisIndexSpec, world: IndexWorld, name: Naming
) -> Step | Blocked | None:
    """Return the step that makes the index the object's own; None where it is, Blocked where it can't be."""
    adopted = _adoption(resource, world)
    if isinstance(adopted, Blocked):
        return adopted
    if adopted is not None and adopted.tombstone:
        return _exhume(resource, spec, world, adopted)
    if adopted is not None:
        return _take(resource, spec, world, adopted, (Reason.ADOPTED, "the annotation names it"))
    if world.row is None:
        return _claim(resource, spec, world, name)
    return None if is_own(resource, world) else _take_up(resource, spec, world, world.row)


def _take_up(resource: Resource, spec: PolarisIndexSpec, world: IndexWorld, row: IndexRow) -> Step | Blocked:
    """Take the index of this name again, where no other installation serves it."""
    if row.state == "deleting":
        message = f"an earlier index of this name, {_label(world, row)}, is still being removed"
        return Blocked(Reason.DELETING, message, stalled=False)
    if row.state == "released":
        return _take(resource, spec, world, row, (Reason.RELEASED, "it was released, with all that is in it"))
    if row.installation == world.installation:
        return _take(resource, spec, world, row, (Reason.RELEASED, "an earlier object of this name had it"))
    return _not_owner(world, row)


def _label(world: IndexWorld, row: IndexRow) -> str:
    return f"{world.catalog}/{row.number}"


def is_own(resource: Resource, world: IndexWorld) -> bool:
    """Whether the index of this name is this object's."""
    return world.row is not None and _is_ours(resource, world, world.row)


def _is_ours(resource: Resource, world: IndexWorld, row: IndexRow) -> bool:
    return row.state == "active" and row.installation == world.installation and row.uid == resource.uid


def _adoption(resource: Resource, world: IndexWorld) -> IndexRow | Blocked | None:
    """Return the row to adopt; None where the annotation is absent or was followed already."""
    wanted = resource.annotations.get(ADOPT_ANNOTATION)
    if wanted is None:
        return None
    if world.row is not None and wanted == _label(world, world.row):
        # Its own name already: the annotation is consent to take it from whoever has it.
        settled = is_own(resource, world) or world.row.state == "deleting"
        return None if settled else world.row
    named = world.named
    if named is None or wanted != _label(world, named):
        return _no("there is no such index in this database", wanted)
    why_not = _why_not(resource, world, named)
    return named if why_not is None else _no(why_not, wanted)


def _why_not(resource: Resource, world: IndexWorld, named: IndexRow) -> str | None:
    """Return why an index of another name can't be adopted; None where it can."""
    if world.row is not None and not (named.tombstone and _gives_way(resource, world, world.row)):
        return f"this object's name has {_label(world, world.row)} already"
    if named.namespace != resource.key.namespace:
        # Whoever may write objects in one namespace shall not read another one's documents by it.
        return f"it is of namespace {named.namespace}, and stays in it"
    if named.state == "deleting":
        return "it is being removed"
    if named.state == "active" and named.installation == world.installation:
        return f"it is in use by PolarisIndex {named.namespace}/{named.name}, delete that first"
    return None


def _gives_way(resource: Resource, world: IndexWorld, row: IndexRow) -> bool:
    """Whether what has this object's name is put aside for what had it before and was deleted."""
    return row.state == "released" or _is_ours(resource, world, row)


def _no(why: str, wanted: str) -> Blocked:
    return Blocked(Reason.NOT_OWNER, f"{ADOPT_ANNOTATION} names {wanted}: {why}", stalled=True)


def _not_owner(world: IndexWorld, row: IndexRow) -> Blocked:
    label = _label(world, row)
    return Blocked(
        Reason.NOT_OWNER,
        f"{row.namespace}/{row.name} ({label}) belongs to installation {row.installation_name};"
        f" to take it over, with its documents, annotate this object with {ADOPT_ANNOTATION}: {label}",
        stalled=True,
    )


_SEQUENCE = Sql("pg_get_serial_sequence('polaris.indexes', 'id')")


def _claim(resource: Resource, spec: PolarisIndexSpec, world: IndexWorld, name: Naming) -> Step:
    # The number was read, not drawn, so that a plan can be shown before anything is done. Who comes
    # second finds the number taken, and looks again.
    insert = compose(
        "INSERT INTO polaris.indexes"
        " (id, installation_id, namespace, name, uid, state, deletion_policy, schema_name)"
        " OVERRIDING SYSTEM VALUE VALUES"
        " ({number}, {installation}, {namespace}, {name}, {uid}, 'active', {policy}, {schema})",
        number=name.number,
        installation=literal(str(world.installation)),
        namespace=literal(resource.key.namespace),
        name=literal(resource.key.name),
        uid=literal(resource.uid),
        policy=literal(spec.deletion_policy.value),
        schema=literal(name.schema),
    )
    drawn = compose("SELECT setval({sequence}, {number})", sequence=_SEQUENCE, number=name.number)
    return Step(
        Reason.PROVISIONING,
        f"Claim {resource.key.namespace}/{resource.key.name} in the catalog as number {name.number}",
        Execute((insert, drawn)),
    )


def _take(
    resource: Resource, spec: PolarisIndexSpec, world: IndexWorld, row: IndexRow, why: tuple[Reason, str]
) -> Step:
    reason, because = why
    return Step(
        reason,
        f"Take up {_label(world, row)} ({row.namespace}/{row.name}) again: {because}",
        Execute(_taken(resource, spec, world, row), (unchanged(row),)),
    )


def _taken(resource: Resource, spec: PolarisIndexSpec, world: IndexWorld, row: IndexRow) -> tuple[Sql, ...]:
    # What an earlier object said of the end of its data does not hold for this one for a moment.
    update = compose(
        "UPDATE polaris.indexes SET installation_id = {installation}, namespace = {namespace},"
        " name = {name}, uid = {uid}, state = 'active', deletion_policy = {policy}, schema_name = {schema},"
        " released_at = NULL, drop_after = NULL, updated_at = now() WHERE id = {number}",
        number=row.number,
        installation=literal(str(world.installation)),
        namespace=literal(resource.key.namespace),
        name=literal(resource.key.name),
        uid=literal(resource.uid),
        policy=literal(spec.deletion_policy.value),
        schema=literal(names.living_schema(row.schema)),
    )
    return update, tell(names.CATALOG_CHANNEL, row.number)


def _exhume(resource: Resource, spec: PolarisIndexSpec, world: IndexWorld, row: IndexRow) -> Step:
    """Have back what was deleted; what has taken its place meanwhile is put aside in its turn."""
    label, was = _label(world, row), f"{row.namespace}/{names.living_name(row.name)}"
    sentence = f"Have back {label} ({was}), which was deleted: the annotation names it"
    statements: tuple[Sql, ...] = ()
    guards = [unchanged(row)]
    if world.row is not None:
        statements = buried(world.row, spec.undelete_seconds)
        guards.append(unchanged(world.row))
        sentence += f"; {_label(world, world.row)}, which has its name now, is put aside instead"
    schema = names.living_schema(row.schema)
    if schema != row.schema:
        rename = compose(
            "ALTER SCHEMA {schema} RENAME TO {to}",
            schema=identifier(row.schema),
            to=identifier(schema),
        )
        statements = (*statements, rename)
    statements = (*statements, *_taken(resource, spec, world, row))
    return Step(Reason.ADOPTED, sentence, Execute(statements, tuple(guards)), told=True)


def changes_hands(step: Step) -> bool:
    """Whether nothing of what was seen of the object's index holds after this step."""
    return step.reason == Reason.ADOPTED and step.told


def guard(resource: Resource, world: IndexWorld, name: Naming) -> Sql:
    """Return the guard of every step after the index was claimed."""
    return owned(name.number, world.installation, resource.uid)
