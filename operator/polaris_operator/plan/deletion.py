"""What becomes of an index whose object is deleted: released, or put aside and later removed.

With Delete it becomes a tombstone first, as that may have been a mistake: it gives its name away, its
schema gets another name, and nobody may look into it. The object waits for no more than that. The
annotation `polaris.dev/adopt` has it back until its time is over; then it is removed. One that never
held a document, or with `undeleteSeconds: 0`, is removed while the object waits.

Only relations that POLARIS named are dropped, one by one. What others built on them, or put into the
schema, stops the removal: it is not ours, and PostgreSQL names it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from polaris import layout, names
from polaris.spec import DeletionPolicy, PolarisIndexSpec
from polaris.sql import Sql, compose, identifier, join, literal
from polaris.status import Reason
from polaris_operator.objects import Resource
from polaris_operator.plan.naming import Naming, ledger_owner, tell
from polaris_operator.steps import Blocked, DeleteVaultRole, Execute, Plan, SetFinalizer, Step
from polaris_operator.world.index import IndexRow, IndexWorld

_RETRY_SECONDS = 5.0
_UNDELETE_SECONDS = int(PolarisIndexSpec.model_fields["undelete_seconds"].default)
_GENERATION = re.compile(r"g[0-9]+_(chunks|applied)")


def deadline_passed(resource: Resource, spec: PolarisIndexSpec, now: datetime) -> bool:
    """Whether a deleted object has waited long enough for its data to be gone."""
    if resource.deleted_at is None:
        return False
    return now >= resource.deleted_at + timedelta(seconds=spec.deletion_deadline_seconds)


def release_finalizer(resource: Resource, sentence: str) -> tuple[Step, ...]:
    """Return the step that lets the object go; none where it waits for nothing of ours."""
    if names.FINALIZER not in resource.finalizers:
        return ()
    return (Step(Reason.DELETED, sentence, SetFinalizer(present=False)),)


def plan_deletion(
    resource: Resource,
    spec: PolarisIndexSpec,
    world: IndexWorld,
    now: datetime,
    *,
    logins: tuple[Step, ...] = (),
) -> Plan:
    """Return what a deleted object still waits for.

    `logins` are the steps that revoke the logins of its readers (and, to remove it, Vault's role).
    """
    row = world.row
    if row is None or not _is_its(resource, world, row):
        return Plan(release_finalizer(resource, "Let the object go: nothing here is its own"))
    if spec.deletion_policy == DeletionPolicy.RETAIN or spec.suspend:
        # A suspended index is not touched: its data stays, as with Retain.
        kept = _kept(world, row)
        let_go = release_finalizer(resource, "Let the object go: its data is kept")
        if deadline_passed(resource, spec, now):
            # Logins that resist their end, and the release, are the collector's.
            return Plan((*kept, *let_go))
        return Plan(
            (*kept, *logins, *_released(world, replace(row, state="active") if kept else row), *let_go)
        )
    if puts_aside(resource, spec, world):
        steps = bury(world, row, now, spec.undelete_seconds)
        let_go = release_finalizer(resource, "Let the object go: its data is put aside")
        # What resists after its deadline is the collector's, and so is a login that resists at all.
        aside = steps[:1] if deadline_passed(resource, spec, now) else (*steps, *logins)
        return Plan((*aside, *let_go))
    if deadline_passed(resource, spec, now):
        marked = _marked(world, row)
        sentence = "Let the object go after its deadline: its data is removed as soon as that is possible"
        return Plan((*marked, *release_finalizer(resource, sentence)))
    done = (
        *removal(world, row, logins=logins),
        *release_finalizer(resource, "Let the object go: nothing is left of its data"),
    )
    blocked = Blocked(Reason.DELETING, "its data is being removed", stalled=False)
    return Plan(done, (), blocked, _RETRY_SECONDS)


# --- putting aside -------------------------------------------------------------------------------


def puts_aside(resource: Resource, spec: PolarisIndexSpec, world: IndexWorld) -> bool:
    """Whether the deletion of this object makes a tombstone of its index."""
    row = world.row
    consent = spec.deletion_policy == DeletionPolicy.DELETE and not spec.suspend
    its = row is not None and _is_its(resource, world, row)
    return row is not None and its and consent and worth_keeping(spec.undelete_seconds, world, row)


def _is_its(resource: Resource, world: IndexWorld, row: IndexRow) -> bool:
    return row.installation == world.installation and row.uid == resource.uid


def worth_keeping(seconds: int, world: IndexWorld, row: IndexRow) -> bool:
    """Whether an index that is deleted is kept for so long, in case that was a mistake."""
    stored = names.DOCUMENTS in world.relations and world.clock != 0
    return seconds > 0 and row.state == "active" and stored


def bury(world: IndexWorld, row: IndexRow, now: datetime, seconds: int) -> tuple[Step, Step]:
    """Return the steps that make a tombstone of an index: its name is free, and nobody gets at its data.

    The first is of the catalog only, and enough for services and workers to leave it; where the second
    fails the collector sees to it.
    """
    label = f"{world.catalog}/{row.number}"
    end = (now + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
    sentence = (
        f"Put {label} ({row.namespace}/{row.name}) aside, to be dropped after {end}; until then, to have it"
        f" back with all that is in it, annotate the object, applied again, with {names.ADOPT_ANNOTATION}:"
        f" {label}"
    )
    step = Step(Reason.DELETED, sentence, Execute(buried(row, seconds), (unchanged(row),)), told=True)
    return step, _shut(world, row)


def buried(row: IndexRow, seconds: int) -> tuple[Sql, ...]:
    """Return the statements of the catalog's half, which belong into one transaction."""
    update = compose(
        # Of nobody: what is done about its logins shall find no Secret of a later object of the name.
        "UPDATE polaris.indexes SET state = 'released', name = {name}, uid = '', deletion_policy = 'Delete',"
        " released_at = now(), drop_after = now() + make_interval(secs => {seconds}), updated_at = now()"
        " WHERE id = {number}",
        name=literal(names.tombstone_name(row.name, row.number)),
        seconds=seconds,
        number=row.number,
    )
    return update, tell(names.CATALOG_CHANNEL, row.number)


def _shut(world: IndexWorld, row: IndexRow) -> Step:
    """Return the step after which the schema has another name, and only its owner may look into it."""
    name = Naming(world.catalog, row.number, row.schema)
    to = names.tombstone_schema(row.schema)
    schema = identifier(name.schema)
    statements = [cancel_builds(name)] if world.builds else []
    if world.schema is not None:
        others = sorted({grantee for grantee, _ in world.schema.grants} - {world.schema.owner})
        for other in others:
            who = Sql("PUBLIC") if other == "public" else identifier(other)
            statements.append(compose("REVOKE ALL ON SCHEMA {schema} FROM {who}", schema=schema, who=who))
        statements.append(compose("ALTER SCHEMA {schema} RENAME TO {to}", schema=schema, to=identifier(to)))
    statements.append(
        compose(
            "UPDATE polaris.indexes SET schema_name = {to}, updated_at = now() WHERE id = {number}",
            to=literal(to),
            number=row.number,
        )
    )
    guard = compose(
        "EXISTS (SELECT FROM polaris.indexes WHERE id = {number} AND state = 'released'"
        " AND drop_after IS NOT NULL AND schema_name = {schema} FOR UPDATE)",
        number=row.number,
        schema=literal(row.schema),
    )
    sentence = f"Rename the schema {row.schema} to {to}, which nobody else may use"
    return Step(Reason.DELETED, sentence, Execute(tuple(statements), (guard,)))


# --- release -------------------------------------------------------------------------------------


def unchanged(row: IndexRow) -> Sql:
    """Return the guard that nobody took it, let go of it or had it back."""
    return compose(
        "EXISTS (SELECT FROM polaris.indexes WHERE id = {number} AND installation_id = {installation}"
        " AND uid = {uid} AND state = {state} AND name = {name} FOR UPDATE)",
        number=row.number,
        installation=literal(str(row.installation)),
        uid=literal(row.uid),
        state=literal(row.state),
        name=literal(row.name),
    )


def _set_state(row: IndexRow, state: str) -> tuple[Sql, ...]:
    released = Sql("now()" if state == "released" else "NULL")
    return (
        compose(
            "UPDATE polaris.indexes SET state = {state}, released_at = {released}, updated_at = now()"
            " WHERE id = {number}",
            state=literal(state),
            released=released,
            number=row.number,
        ),
        tell(names.CATALOG_CHANNEL, row.number),
    )


def _kept(world: IndexWorld, row: IndexRow) -> tuple[Step, ...]:
    """Return the step after which nobody removes the index, also where its removal had begun."""
    begun = row.state == "deleting" and world.schema is not None
    at_risk = row.state == "active" and row.deletion_policy != DeletionPolicy.RETAIN.value
    if not (begun or at_risk):
        return ()
    keep = compose(
        "UPDATE polaris.indexes SET state = 'active', deletion_policy = {policy}, updated_at = now()"
        " WHERE id = {number}",
        policy=literal(DeletionPolicy.RETAIN.value),
        number=row.number,
    )
    sentence = f"Write down that the data of {world.catalog}/{row.number} is kept"
    return (Step(Reason.SPEC_CHANGED, sentence, Execute((keep,), (unchanged(row),))),)


def _released(world: IndexWorld, row: IndexRow) -> tuple[Step, ...]:
    if row.state != "active":
        return ()
    sentence = f"Release {world.catalog}/{row.number} ({row.namespace}/{row.name}), with all that is in it"
    return (Step(Reason.RELEASED, sentence, Execute(_set_state(row, "released"), (unchanged(row),))),)


def _marked(world: IndexWorld, row: IndexRow) -> tuple[Step, ...]:
    if row.state == "deleting":
        return ()
    sentence = f"Mark {world.catalog}/{row.number} ({row.namespace}/{row.name}) as being removed"
    return (Step(Reason.DELETED, sentence, Execute(_set_state(row, "deleting"), (unchanged(row),))),)


# --- removal -------------------------------------------------------------------------------------


def removal(world: IndexWorld, row: IndexRow, *, logins: tuple[Step, ...] = ()) -> tuple[Step, ...]:
    """Return all steps that remove an index: builds, logins, schema, roles, and its row at last."""
    name = Naming(world.catalog, row.number, row.schema)
    guard = compose(
        "EXISTS (SELECT FROM polaris.indexes WHERE id = {id} AND state = 'deleting' FOR UPDATE)",
        id=row.number,
    )
    return (
        *_marked(world, row),
        *_end_builds(world, name, guard),
        *logins,
        *_drop_schema(world, name, guard),
        *_drop_roles(world, name, guard),
        _forget(name, guard),
    )


def _end_builds(world: IndexWorld, name: Naming, guard: Sql) -> tuple[Step, ...]:
    if not world.builds:
        return ()
    sentence = f"End the builds that run in {name.schema}"
    return (Step(Reason.DELETED, sentence, Execute((cancel_builds(name),), (guard,))),)


def cancel_builds(name: Naming) -> Sql:
    """Return the statement that ends the builds that run in the schema of an index."""
    return compose(
        "SELECT pg_cancel_backend(p.pid) FROM pg_stat_progress_create_index p"
        " JOIN pg_class c ON c.oid = p.relid WHERE p.datname = current_database()"
        " AND c.relnamespace = to_regnamespace({schema})",
        schema=literal(identifier(name.schema)),
    )


def _ours(world: IndexWorld) -> list[str]:
    tables = {table.name for table in (layout.STORED_DOCUMENTS, layout.STORED_VERSIONS, layout.CLOCK)}
    return sorted(name for name in world.relations if name in tables or _GENERATION.fullmatch(name))


def _drop_schema(world: IndexWorld, name: Naming, guard: Sql) -> tuple[Step, ...]:
    if world.schema is None:
        return ()
    views = [v for v in (names.CHUNKS_VIEW, names.DOCUMENTS_VIEW) if v in world.relations]
    drops = [
        compose(
            "DROP {kind} {relations}",
            kind=Sql(kind),
            relations=join(", ", (name.relation(relation) for relation in relations)),
        )
        for kind, relations in (("VIEW", views), ("TABLE", _ours(world)))
        if relations
    ]
    drops.append(compose("DROP SCHEMA {schema}", schema=identifier(name.schema)))
    sentence = f"Drop the schema {name.schema} with all documents and vectors"
    return (Step(Reason.DELETED, sentence, Execute(tuple(drops), (guard,)), destructive=True),)


def _drop_roles(world: IndexWorld, name: Naming, guard: Sql) -> tuple[Step, ...]:
    roles = [role for role in (name.reader, name.writer, name.owner) if role in world.roles]
    if not roles:
        return ()
    named = join(", ", map(identifier, roles))
    statements = (
        # What they were granted elsewhere in this database goes too; that takes being a member.
        compose("GRANT {roles} TO {us}", roles=named, us=identifier(names.OPERATOR_ROLE)),
        compose("DROP OWNED BY {roles}", roles=named),
        compose("DROP ROLE {roles}", roles=named),
    )
    return (Step(Reason.DELETED, f"Drop the roles {', '.join(roles)}", Execute(statements, (guard,))),)


def _forget(name: Naming, guard: Sql) -> Step:
    owner = literal(ledger_owner(name.number))
    credentials = compose("DELETE FROM polaris.credentials WHERE owner = {owner}", owner=owner)
    index = compose("DELETE FROM polaris.indexes WHERE id = {number}", number=name.number)
    settled = compose(
        "NOT EXISTS (SELECT FROM polaris.credentials WHERE owner = {owner} AND state <> 'revoked')",
        owner=owner,
    )
    return Step(
        Reason.DELETED,
        f"Forget index {name.catalog}/{name.number}",
        Execute((credentials, index, tell(names.CATALOG_CHANNEL, name.number)), (guard, settled)),
        destructive=True,
    )


def forget_vault_role(world: IndexWorld) -> tuple[Step, ...]:
    """Return the step that deletes Vault's role for readers of the index, once its logins are revoked."""
    reader = names.index_role(world.catalog, world.number, "reader")
    action = DeleteVaultRole(names.vault_role(world.catalog, reader))
    return (Step(Reason.DELETED, f"Delete the role {action.role} in Vault", action),)


# --- objects that are gone -----------------------------------------------------------------------


def plan_collection(
    world: IndexWorld,
    row: IndexRow,
    now: datetime,
    *,
    logins: tuple[Step, ...] | None = (),
    due: bool = False,
) -> Plan:
    """Return what becomes of an index whose object is gone, by what the object said last.

    `logins` are the steps that end those of its readers; None where that is not possible now, and then
    nothing is removed either: they would be left behind. `due`: its time as a tombstone is over.
    """
    if row.tombstone and not due:
        return Plan((*_left_open(world, row), *(logins or ())))
    if logins is None or (row.state == "released" and not row.tombstone):
        return Plan()
    if row.state == "active" and row.deletion_policy != DeletionPolicy.DELETE.value:
        return Plan((*logins, *_released(world, row)))
    if worth_keeping(seconds := _undelete_seconds(row), world, row):
        return Plan((*bury(world, row, now, seconds), *logins))
    return Plan(removal(world, row, logins=logins))


def _left_open(world: IndexWorld, row: IndexRow) -> tuple[Step, ...]:
    return (_shut(world, row),) if row.schema != names.tombstone_schema(row.schema) else ()


def _undelete_seconds(row: IndexRow) -> int:
    """Return for how long the object wanted its data to be kept aside, by the spec that was true last."""
    said = (row.spec or {}).get("undeleteSeconds", _UNDELETE_SECONDS)
    return said if isinstance(said, int) else _UNDELETE_SECONDS


TOMBSTONES_KEPT = 100
"""Of an installation in a database; beyond it those that end first go at once."""


def needs_collecting(row: IndexRow, rows: Sequence[IndexRow], now: datetime) -> tuple[bool, bool]:
    """Return whether something is to be done about a tombstone among `rows`; whether its time is over."""
    if not row.tombstone or row.drop_after is None:
        return False, False
    later = sum(1 for one in rows if one.tombstone and (one.drop_after or now, one.number) > _end(row, now))
    due = row.drop_after <= now or later >= TOMBSTONES_KEPT
    return due or row.logins or row.schema != names.tombstone_schema(row.schema), due


def _end(row: IndexRow, now: datetime) -> tuple[datetime, int]:
    return row.drop_after or now, row.number
