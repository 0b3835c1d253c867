"""What becomes of an index whose object is deleted: released, or removed with all that is in it.

Only relations that POLARIS named are dropped, one by one. What others built on them, or put into the
schema, stops the removal: it is not ours, and PostgreSQL names it.
"""

from __future__ import annotations

import re
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
    ours = row is not None and row.installation == world.installation and row.uid == resource.uid
    if row is None or not ours:
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


# --- release -------------------------------------------------------------------------------------


def _unchanged(row: IndexRow) -> Sql:
    return compose(
        "EXISTS (SELECT FROM polaris.indexes WHERE id = {number} AND installation_id = {installation}"
        " AND uid = {uid} AND state = {state} FOR UPDATE)",
        number=row.number,
        installation=literal(str(row.installation)),
        uid=literal(row.uid),
        state=literal(row.state),
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
    return (Step(Reason.SPEC_CHANGED, sentence, Execute((keep,), (_unchanged(row),))),)


def _released(world: IndexWorld, row: IndexRow) -> tuple[Step, ...]:
    if row.state != "active":
        return ()
    sentence = f"Release {world.catalog}/{row.number} ({row.namespace}/{row.name}), with all that is in it"
    return (Step(Reason.RELEASED, sentence, Execute(_set_state(row, "released"), (_unchanged(row),))),)


def _marked(world: IndexWorld, row: IndexRow) -> tuple[Step, ...]:
    if row.state == "deleting":
        return ()
    sentence = f"Mark {world.catalog}/{row.number} ({row.namespace}/{row.name}) as being removed"
    return (Step(Reason.DELETED, sentence, Execute(_set_state(row, "deleting"), (_unchanged(row),))),)


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
    cancel = compose(
        "SELECT pg_cancel_backend(p.pid) FROM pg_stat_progress_create_index p"
        " JOIN pg_class c ON c.oid = p.relid WHERE p.datname = current_database()"
        " AND c.relnamespace = to_regnamespace({schema})",
        schema=literal(identifier(name.schema)),
    )
    sentence = f"End the builds that run in {name.schema}"
    return (Step(Reason.DELETED, sentence, Execute((cancel,), (guard,))),)


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


def plan_collection(world: IndexWorld, row: IndexRow, *, logins: tuple[Step, ...] = ()) -> Plan:
    """Return what becomes of an index whose object is gone, by what the object said last."""
    if row.state == "deleting" or row.deletion_policy == DeletionPolicy.DELETE.value:
        if row.state == "released":
            return Plan()
        return Plan(removal(world, row, logins=logins))
    return Plan((*logins, *_released(world, row)))
