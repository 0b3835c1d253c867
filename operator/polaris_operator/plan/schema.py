"""Roles, schema, tables, views and grants of one index: what is missing, and what was damaged.

Functions whose names begin with `own_` are about the two tables of one generation; all others are about what
an index has once, and the views of the generation that serves.

Only what POLARIS itself named is ever touched. A table that lost a column or its documents is not
mended here: nobody can know what it held.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from polaris import layout, names
from polaris.sql import Sql, compose, identifier, join
from polaris.status import Reason
from polaris_operator.plan.aim import Aim
from polaris_operator.plan.naming import as_owner, tell
from polaris_operator.steps import Blocked, Step
from polaris_operator.world.index import Column, Grants, Relation

_DOCUMENT_TABLES = (layout.STORED_DOCUMENTS, layout.STORED_VERSIONS, layout.CLOCK)
_TRUTH = (layout.STORED_DOCUMENTS, layout.STORED_VERSIONS)
_WRITE = ("SELECT", "INSERT", "UPDATE", "DELETE")


def _own_tables(aim: Aim) -> tuple[layout.Table, ...]:
    return (aim.chunks, aim.applied)


# --- what nobody but a person can mend -----------------------------------------------------------


def damage(aim: Aim) -> Blocked | None:
    """Return what is wrong with the tables beyond repair; None where all is well."""
    lost = [
        *_lost(aim),
        *(fault for table in _DOCUMENT_TABLES for fault in _faults(aim, table)),
        *(f"{view} is not a view" for view in _VIEWS if _is_other(aim.world.relations.get(view))),
        *_ids_not_unique(aim),
    ]
    made = own_faults(aim)
    if not lost and not made:
        return None
    remedy = (
        "restore it from a backup, or delete this index with deletionPolicy Delete and load it again"
        if lost
        else f"restore it from a backup, or drop {_tables_with_faults(aim)} with what hangs on it, and it is"
        " made again from the stored documents"
    )
    return Blocked(
        Reason.DRIFTED,
        f"in schema {aim.name.schema}: {'; '.join((*lost, *made))}: {remedy}",
        stalled=True,
    )


def _tables_with_faults(aim: Aim) -> str:
    return " and ".join(table.name for table in _own_tables(aim) if any(_faults(aim, table)))


def own_faults(aim: Aim) -> tuple[str, ...]:
    """Return what is wrong with the generation's tables, as far as they are there."""
    return tuple(fault for table in _own_tables(aim) for fault in _faults(aim, table))


def _lost(aim: Aim) -> Iterator[str]:
    if aim.made is not None:
        for table in _TRUTH:
            if table.name not in aim.world.relations:
                yield f"table {table.name} is gone, and the documents with it"
            elif table.name in aim.world.emptied:
                yield f"table {table.name} lost rows, and the documents with them"


def _faults(aim: Aim, table: layout.Table) -> Iterator[str]:
    seen = aim.world.relations.get(table.name)
    if seen is None:
        return
    if seen.kind != "r":
        yield f"{table.name} is not a table"
        return
    columns = {column.name: column for column in seen.columns}
    for wanted in table.columns:
        yield from _column_faults(table.name, wanted, columns.get(wanted.name))
    if seen.primary_key != table.primary_key:
        yield f"the primary key of {table.name} is ({', '.join(seen.primary_key)})"


def _ids_not_unique(aim: Aim) -> Iterator[str]:
    # Two documents of one id: the service would go on to update either.
    unique = any(
        seen.table == names.DOCUMENTS and seen.columns == ("external_id",) and seen.unique and seen.valid
        for seen in aim.world.indexes.values()
        if not seen.partial
    )
    if names.DOCUMENTS in aim.world.relations and not unique:
        yield f"{names.DOCUMENTS}.external_id is not unique any more"


def _is_other(seen: Relation | None) -> bool:
    return seen is not None and seen.kind != "v"


def _column_faults(table: str, wanted: layout.Column, seen: Column | None) -> Iterator[str]:
    if seen is None:
        yield f"column {table}.{wanted.name} is gone"
    elif seen.type != wanted.type:
        yield f"column {table}.{wanted.name} is {seen.type}, not {wanted.type}"
    elif wanted.not_null and not seen.not_null:
        yield f"column {table}.{wanted.name} may be NULL"


# --- roles ---------------------------------------------------------------------------------------


def roles(aim: Aim) -> list[Step]:
    """Return the steps that make the three roles and who is in them."""
    name = aim.name
    created = [role for role in (name.owner, name.reader, name.writer) if role not in aim.world.roles]
    statements = [
        *(compose("CREATE ROLE {role} NOLOGIN", role=identifier(role)) for role in created),
        *_memberships(aim),
    ]
    steps = []
    if statements:
        what = f"Make the roles {', '.join(created)}" if created else "Grant what roles of the index lack"
        reason = Reason.ROLE_MISSING if created else Reason.GRANT_MISSING
        steps.append(aim.step(reason, what, *statements))
    for role in (name.owner, name.reader, name.writer):
        seen = aim.world.roles.get(role)
        if seen is not None and seen.login:
            alter = compose("ALTER ROLE {role} NOLOGIN", role=identifier(role))
            steps.append(aim.step(Reason.DRIFTED, f"Role {role} must not log in", alter))
    return steps


def _memberships(aim: Aim) -> Iterator[Sql]:
    name, operator = aim.name, names.OPERATOR_ROLE
    wanted = [(role, operator, False) for role in (name.owner, name.reader, name.writer)]
    wanted += [(name.writer, names.group_role(name.catalog, p), False) for p in ("query", "worker")]
    if aim.world.issuer:
        # Vault's login makes members of the readers' role, which takes ADMIN on it.
        wanted.append((name.reader, names.ISSUER_ROLE, True))
    for role, member, admin in wanted:
        seen = aim.world.roles.get(role)
        if seen is None or member not in (seen.admins if admin else seen.members):
            yield compose(
                "GRANT {role} TO {member}{option}",
                role=identifier(role),
                member=identifier(member),
                option=Sql(" WITH ADMIN OPTION" if admin else ""),
            )


def missing_groups(aim: Aim) -> Blocked | None:
    """Return that the database is not made ready yet: the groups of logins are the database's."""
    groups = [names.group_role(aim.name.catalog, purpose) for purpose in ("query", "worker")]
    missing = [group for group in groups if group not in aim.world.roles]
    if not missing:
        return None
    message = f"role {' and '.join(missing)} of the PolarisDatabase is not there yet"
    return Blocked(Reason.DATABASE_NOT_READY, message, stalled=False)


# --- schema and tables ---------------------------------------------------------------------------


def schema(aim: Aim) -> list[Step]:
    """Return the steps that make the schema, owned by the owner role."""
    place, owner = identifier(aim.name.schema), identifier(aim.name.owner)
    seen = aim.world.schema
    if seen is None:
        create = compose("CREATE SCHEMA {schema} AUTHORIZATION {owner}", schema=place, owner=owner)
        return [aim.step(Reason.SCHEMA_MISSING, f"Make the schema {aim.name.schema}", create)]
    if seen.owner != aim.name.owner:
        alter = compose("ALTER SCHEMA {schema} OWNER TO {owner}", schema=place, owner=owner)
        sentence = f"Schema {aim.name.schema} is owned by {seen.owner}, give it to {aim.name.owner}"
        return [aim.step(Reason.DRIFTED, sentence, alter)]
    return []


def document_tables(aim: Aim) -> list[Step]:
    """Return the steps that make the tables of documents and the clock."""
    missing = [table for table in _DOCUMENT_TABLES if table.name not in aim.world.relations]
    statements = [table.create(aim.name.schema) for table in missing]
    if layout.STORED_DOCUMENTS in missing:
        statements.append(layout.DOCUMENTS_BY_SEQUENCE.create(aim.name.schema))
    if layout.CLOCK in missing or aim.world.clock is None:
        statements.append(layout.start_clock(aim.name.schema))
    if not statements:
        return []
    what = f"Make {_listed(table.name for table in missing)}" if missing else "Start the clock again"
    return [aim.step(Reason.TABLE_MISSING, what, *owned_by_owner(aim, statements))]


def ownership(aim: Aim) -> list[Step]:
    """Return the steps that give tables of documents and views back to the owner role."""
    return _given_back(aim, (*(table.name for table in _DOCUMENT_TABLES), *_VIEWS))


def own_ownership(aim: Aim) -> list[Step]:
    """Return the steps that give the generation's tables back to the owner role."""
    return _given_back(aim, [table.name for table in _own_tables(aim)])


def _given_back(aim: Aim, relations: Iterable[str]) -> list[Step]:
    steps = []
    for relation in relations:
        seen = aim.world.relations.get(relation)
        if seen is not None and seen.owner != aim.name.owner:
            alter = compose(
                "ALTER TABLE {relation} OWNER TO {owner}",
                relation=aim.name.relation(relation),
                owner=identifier(aim.name.owner),
            )
            sentence = f"{relation} is owned by {seen.owner}, give it to {aim.name.owner}"
            steps.append(aim.step(Reason.DRIFTED, sentence, alter))
    return steps


_STORAGE = {"p": "PLAIN", "e": "EXTERNAL", "m": "MAIN", "x": "EXTENDED"}


def own_storage(aim: Aim) -> list[Step]:
    """Return the step that sets the storage of the embedding column, where another one is set."""
    seen = aim.world.relations.get(aim.chunks.name)
    column = next((c for c in seen.columns if c.name == "embedding"), None) if seen else None
    wanted = layout.embedding_storage(aim.spec.embedding)
    if column is None or _STORAGE.get(column.storage) == wanted:
        return []
    sentence = f"Keep the vectors of {aim.chunks.name} {wanted}, not {_STORAGE.get(column.storage)}"
    return [
        aim.step(
            Reason.DRIFTED,
            sentence,
            layout.set_embedding_storage(aim.name.schema, aim.number, aim.spec.embedding),
        )
    ]


# --- views and grants ----------------------------------------------------------------------------

_VIEWS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    names.DOCUMENTS_VIEW: (
        ("document", "version", "title", "uri", "text", "attributes", "updated_at"),
        (names.DOCUMENTS, names.VERSIONS),
    ),
    names.CHUNKS_VIEW: (
        (
            "document",
            "version",
            "chunk",
            "span_start",
            "span_end",
            "text",
            "attributes",
            "embedding",
            "generation",
        ),
        (names.DOCUMENTS, names.VERSIONS),
    ),
}


def point_view(aim: Aim) -> list[Sql]:
    """Return the statements that make the view of chunks one of this generation, for the same readers.

    Made anew: the type of its vectors tells their dimension, and PostgreSQL replaces no view by one of other
    types. Where others have built on it they stop us.
    """
    return [
        *owned_by_owner(
            aim,
            [
                compose("DROP VIEW IF EXISTS {view}", view=aim.name.relation(names.CHUNKS_VIEW)),
                layout.chunks_view(aim.name.schema, aim.number),
            ],
        ),
        *_missing(None, aim.name.relation(names.CHUNKS_VIEW), aim.name.reader, ("SELECT",)),
        *_granted_by_others(aim),
    ]


def _granted_by_others(aim: Aim) -> Iterator[Sql]:
    seen = aim.world.relations.get(names.CHUNKS_VIEW)
    for grantee, privilege in sorted(seen.grants if seen else ()):
        if grantee not in (aim.name.owner, aim.name.reader):
            yield compose(
                "GRANT {privilege} ON {view} TO {grantee}",
                privilege=Sql(privilege),
                view=aim.name.relation(names.CHUNKS_VIEW),
                grantee=Sql("PUBLIC") if grantee == "public" else identifier(grantee),
            )


def views(aim: Aim) -> list[Step]:
    """Return the steps that make the stable views."""
    definitions = {
        names.DOCUMENTS_VIEW: layout.documents_view(aim.name.schema),
        names.CHUNKS_VIEW: layout.chunks_view(aim.name.schema, aim.number),
    }
    steps = []
    for view, definition in definitions.items():
        seen = aim.world.relations.get(view)
        if seen is not None and _view_is_right(aim, view, seen):
            continue
        what = "Make" if seen is None else "Put right"
        steps.append(
            aim.step(
                Reason.VIEW_MISSING,
                f"{what} the view {view}",
                *owned_by_owner(aim, [*_drop_view(aim, view, seen), definition]),
            )
        )
    return steps


def _view_is_right(aim: Aim, view: str, seen: Relation) -> bool:
    columns, reads = _VIEWS[view]
    wanted = {*reads, aim.chunks.name} if view == names.CHUNKS_VIEW else set(reads)
    return _columns(seen) == columns and seen.depends_on == wanted


def _drop_view(aim: Aim, view: str, seen: Relation | None) -> list[Sql]:
    # CREATE OR REPLACE keeps the grants, but can't take columns away. What others built on the view
    # stops us: it is not ours to drop.
    if seen is None or _columns(seen) == _VIEWS[view][0]:
        return []
    return [compose("DROP VIEW {view}", view=aim.name.relation(view))]


def _columns(seen: Relation) -> tuple[str, ...]:
    return tuple(column.name for column in seen.columns)


def grants(aim: Aim) -> list[Step]:
    """Return the step that grants what readers and writers lack, once the steps before it are done."""
    name, world = aim.name, aim.world
    held = {
        relation: seen.grants
        for relation, seen in world.relations.items()
        if relation not in _VIEWS or not _drop_view(aim, relation, seen)
    }
    schema_grants = world.schema.grants if world.schema else frozenset()
    place = compose("SCHEMA {schema}", schema=identifier(name.schema))
    missing = [
        *_missing(schema_grants, place, name.reader, ("USAGE",)),
        *_missing(schema_grants, place, name.writer, ("USAGE",)),
    ]
    for table in _DOCUMENT_TABLES:
        missing += _missing(held.get(table.name), name.relation(table.name), name.writer, _WRITE)
    if aim.chunks.name in world.relations:
        missing += own_grants(aim)
    for view in _VIEWS:
        missing += _missing(held.get(view), name.relation(view), name.reader, ("SELECT",))
    if not _connects(aim):
        missing.append(
            compose(
                "GRANT CONNECT ON DATABASE {database} TO {reader}",
                database=identifier(world.database),
                reader=identifier(name.reader),
            )
        )
    if not missing:
        return []
    sentence = f"Grant readers and writers of {name.schema} what they lack"
    return [aim.step(Reason.GRANT_MISSING, sentence, *missing)]


def own_grants(aim: Aim) -> list[Sql]:
    """Return the statements that grant writers what they lack on the generation's tables."""
    missing = []
    for table in _own_tables(aim):
        seen = aim.world.relations.get(table.name)
        held = seen.grants if seen else None
        missing += _missing(held, aim.name.relation(table.name), aim.name.writer, _WRITE)
    return missing


def _connects(aim: Aim) -> bool:
    reader = aim.world.roles.get(aim.name.reader)
    return reader.connects if reader else aim.world.public_connects


def _missing(held: Grants | None, what: Sql, role: str, privileges: tuple[str, ...]) -> list[Sql]:
    lacking = [p for p in privileges if (role, p) not in (held or ())]
    if not lacking:
        return []
    return [
        compose(
            "GRANT {privileges} ON {what} TO {role}",
            privileges=join(", ", map(Sql, lacking)),
            what=what,
            role=identifier(role),
        )
    ]


def owned_by_owner(aim: Aim, statements: list[Sql]) -> list[Sql]:
    """Return the statements so that the owner role owns what they make."""
    before, after = as_owner(aim.name)
    return [before, *statements, after]


def _listed(items: Iterable[str]) -> str:
    *most, last = items
    return f"{', '.join(most)} and {last}" if most else last


def wake_workers(aim: Aim) -> Sql:
    """Return the statement that tells workers to look for work."""
    return tell(names.WORK_CHANNEL, aim.name.number)


__all__ = [
    "damage",
    "document_tables",
    "grants",
    "missing_groups",
    "own_faults",
    "own_grants",
    "own_ownership",
    "own_storage",
    "owned_by_owner",
    "ownership",
    "point_view",
    "roles",
    "schema",
    "views",
    "wake_workers",
]
