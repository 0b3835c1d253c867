"""What there is of indexes: one look at a database, for one index or for a thousand.

Each query is over sets, so a look costs about the same for any number of indexes. Locks are looked at
as they are now, and the catalogs as they were at the first query: a build that ended between the two
looks as if it had died. The steps that would follow from that look again, under its lock.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from polaris import layout, names
from polaris.catalog import CONSUMER_TIMEOUT_SECONDS
from polaris.spec import Embedding
from polaris.sql import Sql, compose, identifier, join, literal
from polaris_operator import sessions
from polaris_operator.world.index import (
    BEHIND_LIMIT,
    Build,
    Claim,
    ClassRecall,
    Column,
    GenerationRow,
    Grants,
    IndexRow,
    IndexSeen,
    IndexWorld,
    Model,
    RecallDetails,
    Relation,
    Role,
    Schema,
    Verified,
)

OLD_TRANSACTION_SECONDS = 600
"""A transaction that has been open for so long is told of before a build begins that will wait for it."""

_BASE = text(
    compose(
        """
SELECT c.id AS catalog, current_database() AS database, now() AS now,
  s.last_value + CAST(s.is_called AS integer) AS next_number,
  EXISTS (SELECT FROM pg_roles WHERE rolname = :issuer) AS issuer,
  has_database_privilege('public', current_database(), 'CONNECT') AS public_connects,
  (SELECT query_url FROM polaris.consumers
   WHERE kind = 'query' AND query_url IS NOT NULL
     AND reported_at > now() - make_interval(secs => :timeout)
   ORDER BY reported_at DESC, id LIMIT 1) AS query_url,
  -- CONCURRENTLY waits for no other build, and for no VACUUM.
  (SELECT {session} FROM pg_stat_activity a
   WHERE a.datname = current_database() AND a.backend_type = 'client backend'
     AND a.xact_start < now() - make_interval(secs => :old) AND a.application_name !~ {builds}
   ORDER BY a.xact_start, a.pid LIMIT 1) AS old_transaction
FROM polaris.catalog c CROSS JOIN polaris.indexes_id_seq s
""",
        session=sessions.told("a"),
        builds=sessions.BUILDS,
    )
)

_MODELS = text("""
SELECT DISTINCT provider, model, revision, dimension FROM polaris.models
WHERE reported_at > now() - make_interval(secs => :timeout)
""")

_INDEX_COLUMNS = Sql("""
SELECT i.id, i.installation_id, n.name AS installation_name, i.namespace, i.name, i.uid, i.state,
  i.deletion_policy, i.schema_name, i.spec, i.object_generation, i.serving, i.updated_at,
  i.last_generation, i.released_at, i.drop_after, {logins} AS logins
FROM polaris.indexes i JOIN polaris.installations n ON n.id = i.installation_id
""")
_ROWS = text(f"""{compose(_INDEX_COLUMNS, logins=Sql("false"))}
WHERE i.id = ANY(CAST(:numbers AS integer[])) OR (i.namespace, i.name) IN
  (SELECT * FROM unnest(CAST(:namespaces AS text[]), CAST(:names AS text[])))
""")  # noqa: S608  a constant of ours
_OWN_LOGINS = Sql(
    "EXISTS (SELECT FROM polaris.credentials c WHERE c.owner = 'index/' || i.id AND c.state <> 'revoked')"
)
_OWN_ROWS = text(
    f"{compose(_INDEX_COLUMNS, logins=_OWN_LOGINS)} WHERE i.installation_id = :installation ORDER BY i.id"
)

_LOADS = text("""
SELECT i.namespace, i.name FROM polaris.indexes i
JOIN polaris.generations g ON g.index_id = i.id AND g.number = i.serving
WHERE i.installation_id = :installation AND i.state = 'active'
  AND (g.state = 'serving' AND g.load_requested_at IS NOT NULL
    OR g.state = 'loading' AND g.load_requested_at IS NULL)
""")

_GENERATIONS = text("""
SELECT index_id, number, state, embedding, chunking, index, vector_index, ef_search, recall, recall_rows,
  recall_at, recall_details, load_requested_at, valid_since, superseded_at, verified_at, verified, low_water,
  (SELECT count(*) FROM polaris.query_vectors v
   WHERE v.index_id = g.index_id AND v.generation = g.number) AS questions
FROM polaris.generations g WHERE index_id = ANY(CAST(:numbers AS integer[])) ORDER BY number
""")

# PostgreSQL 16 brought inherit_option and set_option; before it every membership had both.
_ROLES = text("""
SELECT r.rolname AS name, r.rolcanlogin AS login,
  has_database_privilege(r.oid, current_database(), 'CONNECT') AS connects,
  coalesce(json_agg(json_build_array(m.rolname,
    coalesce(CAST(to_jsonb(a) ->> 'inherit_option' AS boolean), true)
    AND coalesce(CAST(to_jsonb(a) ->> 'set_option' AS boolean), true), a.admin_option))
    FILTER (WHERE m.oid IS NOT NULL), '[]') AS members
FROM pg_roles r
LEFT JOIN pg_auth_members a ON a.roleid = r.oid
LEFT JOIN pg_roles m ON m.oid = a.member
WHERE r.rolname = ANY(CAST(:roles AS text[])) GROUP BY r.oid, r.rolname, r.rolcanlogin
""")

_GRANTEE = "CASE x.grantee WHEN 0 THEN 'public' ELSE pg_get_userbyid(x.grantee) END"

_SCHEMAS = text(f"""
SELECT n.nspname AS name, pg_get_userbyid(n.nspowner) AS owner,
  (SELECT json_agg(json_build_array({_GRANTEE}, x.privilege_type)) FROM aclexplode(n.nspacl) x) AS grants
FROM pg_namespace n WHERE n.nspname = ANY(CAST(:schemas AS text[]))
""")  # noqa: S608  a constant of ours

_RELATIONS = text(f"""
SELECT n.nspname AS schema, c.relname AS name, c.relkind AS kind, pg_get_userbyid(c.relowner) AS owner,
  CAST(greatest(pg_stat_get_live_tuples(c.oid), c.reltuples, 0) AS bigint) AS rows,
  CASE c.relkind WHEN 'r' THEN coalesce(pg_relation_size(c.oid), 0) ELSE 0 END AS bytes,
  c.relkind = 'r' AND c.relfilenode <> c.oid AS rewritten,
  pg_stat_get_live_tuples(c.oid) AS live, pg_stat_get_dead_tuples(c.oid) AS dead,
  pg_stat_get_mod_since_analyze(c.oid) AS changed,
  pg_stat_get_tuples_inserted(c.oid) + pg_stat_get_tuples_updated(c.oid) + pg_stat_get_tuples_deleted(c.oid)
    AS writes,
  greatest(pg_stat_get_last_vacuum_time(c.oid), pg_stat_get_last_autovacuum_time(c.oid)) AS vacuumed_at,
  (SELECT json_agg(json_build_array(
       a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attstorage) ORDER BY a.attnum)
   FROM pg_attribute a
   WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns,
  (SELECT json_agg(a.attname ORDER BY k.place)
   FROM pg_constraint p CROSS JOIN unnest(p.conkey) WITH ORDINALITY k(number, place)
   JOIN pg_attribute a ON a.attrelid = p.conrelid AND a.attnum = k.number
   WHERE p.conrelid = c.oid AND p.contype = 'p') AS primary_key,
  (SELECT json_agg(json_build_array({_GRANTEE}, x.privilege_type)) FROM aclexplode(c.relacl) x) AS grants,
  (SELECT json_agg(DISTINCT s.relname)
   FROM pg_rewrite w
   JOIN pg_depend d ON d.classid = CAST('pg_rewrite' AS regclass) AND d.objid = w.oid
     AND d.refclassid = CAST('pg_class' AS regclass) AND d.refobjid <> c.oid
   JOIN pg_class s ON s.oid = d.refobjid
   WHERE c.relkind = 'v' AND w.ev_class = c.oid) AS depends_on
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = ANY(CAST(:schemas AS text[])) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
""")  # noqa: S608  a constant of ours

_INDEXES = text("""
SELECT n.nspname AS schema, x.relname AS name, t.relname AS table,
  i.indisvalid AND i.indisready AND i.indislive AS valid, m.amname AS method, o.opcname AS opclass,
  coalesce(x.reloptions, '{}') AS options, pg_get_expr(i.indexprs, i.indrelid) AS expression,
  i.indnatts AS keys, coalesce((SELECT l.collname FROM pg_collation l
    WHERE l.oid = i.indcollation[0] AND l.collname <> 'default'), '') AS collation,
  i.indisunique AS unique, i.indpred IS NOT NULL AS partial,
  EXISTS (SELECT FROM pg_constraint p WHERE p.conindid = x.oid) AS constraint,
  CASE m.amname WHEN 'hnsw' THEN coalesce(pg_relation_size(x.oid), 0) ELSE 0 END AS bytes,
  (SELECT coalesce(json_agg(a.attname ORDER BY k.place), '[]')
   FROM unnest(CAST(i.indkey AS smallint[])) WITH ORDINALITY k(number, place)
   JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number) AS columns
FROM pg_index i
JOIN pg_class x ON x.oid = i.indexrelid
JOIN pg_class t ON t.oid = i.indrelid
JOIN pg_namespace n ON n.oid = t.relnamespace
JOIN pg_am m ON m.oid = x.relam
LEFT JOIN pg_opclass o ON o.oid = i.indclass[0]
WHERE n.nspname = ANY(CAST(:schemas AS text[]))
""")

_LOCKS = text(
    compose(
        """
SELECT l.pid, (CAST(l.classid AS bigint) << 32) | CAST(l.objid AS bigint) AS key,
  (SELECT array_agg({session} ORDER BY b.pid)
   FROM pg_stat_activity b WHERE b.pid = ANY(pg_blocking_pids(l.pid))) AS waits_for
FROM pg_locks l
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
""",
        session=sessions.told("b"),
    )
)

_BUILDS = text(
    compose(
        """
SELECT p.pid, n.nspname AS schema, t.relname AS table, x.relname AS index, p.phase,
  CASE WHEN p.blocks_total > 0 THEN p.blocks_done ELSE p.tuples_done END AS done,
  CASE WHEN p.blocks_total > 0 THEN p.blocks_total ELSE p.tuples_total END AS total,
  a.query_start AS started_at,
  (SELECT coalesce(json_agg(who.told ORDER BY who.told), '[]') FROM (
     SELECT {session} AS told FROM pg_stat_activity b WHERE b.pid = ANY(pg_blocking_pids(p.pid))
     -- A prepared transaction has no process: PostgreSQL calls it 0.
     UNION ALL SELECT {prepared} FROM pg_prepared_xacts x
     WHERE 0 = ANY(pg_blocking_pids(p.pid)) AND x.database = current_database()
       AND EXISTS (SELECT FROM pg_locks l WHERE l.pid IS NULL AND l.relation = p.relid
         AND l.virtualtransaction = '-1/' || x.transaction)) who) AS blocked_by
FROM pg_stat_progress_create_index p
JOIN pg_class t ON t.oid = p.relid
JOIN pg_namespace n ON n.oid = t.relnamespace
LEFT JOIN pg_class x ON x.oid = p.index_relid
LEFT JOIN pg_stat_activity a ON a.pid = p.pid
WHERE p.datname = current_database()
""",
        session=sessions.told("b"),
        prepared=sessions.told_prepared("x"),
    )
)


# What holds in a session of the service: of several settings the one that is closest to it, a login's of this
# database first. Our own session shows the configuration file's, unless somebody set it for us alone.
_FORBIDDEN = text("""
WITH who AS (
  SELECT CAST(0 AS oid) AS role, '' AS name UNION ALL
  SELECT m.oid, m.rolname FROM pg_auth_members a JOIN pg_roles m ON m.oid = a.member
  JOIN pg_roles r ON r.oid = a.roleid
  WHERE r.rolname = format('polaris_%s_query', (SELECT id FROM polaris.catalog))),
said AS (
  SELECT DISTINCT ON (w.role) CAST(split_part(c.said, '=', 2) AS boolean) AS used,
    concat('ALTER ', CASE WHEN s.setrole <> 0 THEN format('ROLE %I', w.name)
        WHEN s.setdatabase = 0 THEN 'ROLE ALL' ELSE format('DATABASE %I', current_database()) END,
      CASE WHEN s.setrole <> 0 AND s.setdatabase <> 0 THEN format(' IN DATABASE %I', current_database()) END,
      ' RESET ', split_part(c.said, '=', 1)) AS remedy
  FROM who w JOIN pg_db_role_setting s ON s.setrole IN (0, w.role)
    AND s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
  CROSS JOIN unnest(s.setconfig) c(said)
  WHERE c.said LIKE 'enable\\_indexscan=%'
  ORDER BY w.role, s.setrole <> 0 DESC, s.setdatabase <> 0 DESC)
SELECT DISTINCT remedy FROM said WHERE NOT used UNION ALL
SELECT concat('ALTER SYSTEM RESET ', name) FROM pg_settings
WHERE name = 'enable_indexscan' AND setting = 'off'
  AND source IN ('default', 'configuration file', 'command line', 'environment variable')
ORDER BY 1
""")


# So many rows of each table are looked for in another.
_FEW = 5


@dataclass
class _Found:
    """The catalogs' rows, by schema or role."""

    roles: Mapping[str, Role]
    schemas: Mapping[str, Schema]
    relations: Mapping[str, Mapping[str, Relation]]
    indexes: Mapping[str, Mapping[str, IndexSeen]]
    builds: Mapping[str, tuple[Build, ...]]
    locks: frozenset[int]


def gather(
    connection: Connection, installation: UUID, claims: Sequence[Claim], *, canary: bool = True
) -> dict[Claim, IndexWorld]:
    """Return what there is of each claim's index.

    The connection is in a transaction that reads. `canary` asks the planner, for each index, how it
    would run a search, and looks for rows that are missing: the rest is a few statements for all.
    """
    rows = _rows(connection, claims)
    return _worlds(connection, installation, rows, claims=claims, canary=canary)


def gather_own(connection: Connection, installation: UUID) -> tuple[str, tuple[IndexRow, ...]]:
    """Return the catalog's id, and what this installation has in it, released and half removed too."""
    catalog: str = connection.execute(text("SELECT id FROM polaris.catalog")).scalar_one()
    found = connection.execute(_OWN_ROWS, {"installation": installation})
    return catalog, tuple(_index_row(row) for row in found.mappings())


def gather_loads(connection: Connection, installation: UUID) -> tuple[Claim, ...]:
    """Return our indexes that a bulk load is wished for, or whose bulk load is over."""
    found = connection.execute(_LOADS, {"installation": installation})
    return tuple(Claim(row.namespace, row.name) for row in found)


def gather_row(connection: Connection, installation: UUID, row: IndexRow) -> IndexWorld:
    """Return what there is of the index of this row, whatever its object says."""
    claim = Claim(row.namespace, row.name)
    return _worlds(connection, installation, [row], claims=[claim], canary=False)[claim]


def _worlds(
    connection: Connection,
    installation: UUID,
    rows: Sequence[IndexRow],
    *,
    claims: Sequence[Claim],
    canary: bool,
) -> dict[Claim, IndexWorld]:
    held = connection.execute(_LOCKS).all()
    locks = [(row.pid, row.key) for row in held]
    waits = {row.key: tuple(row.waits_for) for row in held if row.waits_for}
    builds = _builds(connection, locks)
    timeout = {"timeout": CONSUMER_TIMEOUT_SECONDS}
    about = {**timeout, "issuer": names.ISSUER_ROLE, "old": OLD_TRANSACTION_SECONDS}
    base = connection.execute(_BASE, about).mappings().one()
    models = frozenset(Model(**row) for row in connection.execute(_MODELS, timeout).mappings())
    forbidden = tuple(connection.execute(_FORBIDDEN).scalars())
    generations = _generations(connection, [row.number for row in rows])
    bare = {claim: _bare(claim, rows, base, installation=installation, models=models) for claim in claims}
    schemas = {claim: _schema_name(claim, world) for claim, world in bare.items()}
    found = _found(connection, bare.values(), set(schemas.values()), builds, locks)
    worlds = {}
    for claim, world in bare.items():
        filled = _filled(world, schemas[claim], found, generations.get(world.number, ()))
        worlds[claim] = replace(filled, waits=waits, forbidden=forbidden)
    return _looked_into(connection, worlds, schemas, canary=canary)


# --- the catalog ---------------------------------------------------------------------------------


def _rows(connection: Connection, claims: Sequence[Claim]) -> list[IndexRow]:
    parameters = {
        "namespaces": [claim.namespace for claim in claims],
        "names": [claim.name for claim in claims],
        "numbers": [number for claim in claims if (number := _adopted(claim)) is not None],
    }
    return [_index_row(row) for row in connection.execute(_ROWS, parameters).mappings()]


def _adopted(claim: Claim) -> int | None:
    _, slash, number = (claim.adopt or "").partition("/")
    return int(number) if slash and number.isdecimal() and len(number) <= 9 else None


def _index_row(row: Mapping[Any, Any]) -> IndexRow:
    return IndexRow(
        number=row["id"],
        installation=row["installation_id"],
        installation_name=row["installation_name"],
        namespace=row["namespace"],
        name=row["name"],
        uid=row["uid"],
        state=row["state"],
        deletion_policy=row["deletion_policy"],
        schema=row["schema_name"],
        spec=row["spec"],
        object_generation=row["object_generation"],
        serving=row["serving"],
        updated_at=row["updated_at"],
        last_generation=row["last_generation"],
        released_at=row["released_at"],
        drop_after=row["drop_after"],
        logins=row["logins"],
    )


@dataclass(frozen=True)
class _Generation:
    row: GenerationRow
    low_water: int


def _generations(connection: Connection, numbers: Sequence[int]) -> dict[int, tuple[_Generation, ...]]:
    found: dict[int, tuple[_Generation, ...]] = defaultdict(tuple)
    for row in connection.execute(_GENERATIONS, {"numbers": list(numbers)}).mappings():
        values = {key: value for key, value in row.items() if key not in ("index_id", "low_water")}
        verified, details = values.pop("verified"), values.pop("recall_details")
        generation = GenerationRow(
            **values,
            verified=Verified(**verified) if verified else None,
            recall_details=_details(details) if details else None,
        )
        found[row["index_id"]] += (_Generation(generation, row["low_water"]),)
    return found


def _details(said: Mapping[str, Any]) -> RecallDetails:
    classes = tuple(ClassRecall(**one) for one in said["classes"])
    return RecallDetails(**{**said, "classes": classes})


def _bare(
    claim: Claim,
    rows: Iterable[IndexRow],
    base: Mapping[Any, Any],
    *,
    installation: UUID,
    models: frozenset[Model],
) -> IndexWorld:
    own = named = None
    for row in rows:
        if (row.namespace, row.name) == (claim.namespace, claim.name):
            own = row
        elif row.number == _adopted(claim):
            named = row
    return IndexWorld(
        catalog=base["catalog"],
        database=base["database"],
        installation=installation,
        now=base["now"],
        next_number=base["next_number"],
        row=own,
        named=named,
        issuer=base["issuer"],
        public_connects=base["public_connects"],
        models=models,
        query_url=base["query_url"],
        old_transaction=base["old_transaction"],
    )


def _schema_name(claim: Claim, world: IndexWorld) -> str:
    if world.subject is not None:
        return world.subject.schema
    return names.index_schema(world.next_number, claim.name)


# --- PostgreSQL's catalogs -----------------------------------------------------------------------


def _found(
    connection: Connection,
    worlds: Iterable[IndexWorld],
    schemas: set[str],
    builds: Mapping[str, tuple[Build, ...]],
    locks: Iterable[tuple[int, int]],
) -> _Found:
    roles = {role for world in worlds for role in _role_names(world)}
    parameters = {"schemas": sorted(schemas)}
    return _Found(
        roles=_roles(connection, sorted(roles)),
        schemas={
            row["name"]: Schema(row["owner"], _grants(row["grants"]))
            for row in connection.execute(_SCHEMAS, parameters).mappings()
        },
        relations=_relations(connection, parameters),
        indexes=_indexes(connection, parameters),
        builds=builds,
        locks=frozenset(key for _, key in locks),
    )


def _role_names(world: IndexWorld) -> list[str]:
    return [
        *(names.index_role(world.catalog, world.number, role) for role in ("owner", "reader", "writer")),
        *(names.group_role(world.catalog, purpose) for purpose in ("query", "worker")),
    ]


def _roles(connection: Connection, roles: Sequence[str]) -> dict[str, Role]:
    return {
        row["name"]: Role(
            login=row["login"],
            members=frozenset(member for member, usable, _ in row["members"] if usable),
            admins=frozenset(member for member, _, admin in row["members"] if admin),
            connects=row["connects"],
        )
        for row in connection.execute(_ROLES, {"roles": list(roles)}).mappings()
    }


def _grants(pairs: Sequence[Sequence[str]] | None) -> Grants:
    return frozenset((grantee, privilege) for grantee, privilege in pairs or ())


@lru_cache(maxsize=4096)
def _column(name: str, kind: str, not_null: bool, storage: str) -> Column:
    """Return the same value for the same column: a thousand indexes have sixty thousand of a few kinds."""
    # A type of an extension is printed with its schema where that is not on the path.
    return Column(name, kind.rpartition(".")[2], not_null, storage)


def _relations(connection: Connection, parameters: Mapping[str, Any]) -> dict[str, dict[str, Relation]]:
    found: dict[str, dict[str, Relation]] = defaultdict(dict)
    for row in connection.execute(_RELATIONS, parameters).mappings():
        found[row["schema"]][row["name"]] = Relation(
            kind=row["kind"],
            owner=row["owner"],
            columns=tuple(
                _column(name, kind, not_null, storage)
                for name, kind, not_null, storage in row["columns"] or ()
            ),
            primary_key=tuple(row["primary_key"] or ()),
            grants=_grants(row["grants"]),
            rows=row["rows"],
            bytes=row["bytes"],
            rewritten=row["rewritten"],
            live=row["live"],
            dead=row["dead"],
            changed=row["changed"],
            writes=row["writes"],
            vacuumed_at=row["vacuumed_at"],
            depends_on=frozenset(row["depends_on"] or ()),
        )
    return found


def _indexes(connection: Connection, parameters: Mapping[str, Any]) -> dict[str, dict[str, IndexSeen]]:
    found: dict[str, dict[str, IndexSeen]] = defaultdict(dict)
    for row in connection.execute(_INDEXES, parameters).mappings():
        options = dict(option.split("=", 1) for option in row["options"])
        values = {key: value for key, value in row.items() if key not in ("schema", "name")}
        found[row["schema"]][row["name"]] = IndexSeen(
            **{**values, "options": options, "columns": tuple(row["columns"])}
        )
    return found


def _builds(connection: Connection, locks: Iterable[tuple[int, int]]) -> dict[str, tuple[Build, ...]]:
    held: dict[int, set[int]] = defaultdict(set)
    for pid, key in locks:
        held[pid].add(key)
    found: dict[str, tuple[Build, ...]] = defaultdict(tuple)
    for row in connection.execute(_BUILDS).mappings():
        values = {key: value for key, value in row.items() if key != "schema"}
        found[row["schema"]] += (
            Build(**{**values, "blocked_by": tuple(row["blocked_by"])}, locks=frozenset(held[row["pid"]])),
        )
    return found


def _filled(
    world: IndexWorld, schema: str, found: _Found, generations: tuple[_Generation, ...]
) -> IndexWorld:
    return replace(
        world,
        generations=tuple(generation.row for generation in generations),
        roles={role: found.roles[role] for role in _role_names(world) if role in found.roles},
        schema=found.schemas.get(schema),
        relations=dict(found.relations.get(schema, {})),
        indexes=dict(found.indexes.get(schema, {})),
        builds=found.builds.get(schema, ()),
        locks=found.locks,
    )


# --- inside the schemas --------------------------------------------------------------------------


def _looked_into(
    connection: Connection, worlds: dict[Claim, IndexWorld], schemas: Mapping[Claim, str], *, canary: bool
) -> dict[Claim, IndexWorld]:
    """Add what only the indexes' own tables tell: the clock, whether documents wait, the canary.

    Whether rows are missing is looked for with the canary, and where a table has another file than it was
    made with: to look for it in a thousand indexes takes nearly as long as all else together.
    """
    # A statement that fails fails for all: nothing is asked of a table that lost what it would be asked by.
    asked = {claim: world for claim, world in worlds.items() if _has(world, names.CLOCK, "sequence")}
    if not asked:
        return worlds
    claims = list(asked)
    one_by_one = [
        _inside(place, schemas[claim], asked[claim], rows_too=canary or _any_rewritten(asked[claim]))
        for place, claim in enumerate(claims)
    ]
    statement = join(" UNION ALL ", one_by_one)
    rows = connection.exec_driver_sql(statement, execution_options={"no_parameters": True}).mappings()
    for row in rows:
        claim = claims[row["place"]]
        generations = tuple(_with_waiting(g, row["behind"]) for g in asked[claim].generations)
        emptied = frozenset(table for table, is_so in row["emptied"].items() if is_so)
        worlds[claim] = replace(asked[claim], clock=row["clock"], generations=generations, emptied=emptied)
    if canary:
        for claim in claims:
            chosen = _canary(connection, schemas[claim], worlds[claim])
            worlds[claim] = replace(worlds[claim], canary=chosen)
    return worlds


def _with_waiting(generation: GenerationRow, found: Mapping[str, Sequence[int]]) -> GenerationRow:
    behind, failing = found.get(str(generation.number), (0, 0))
    return replace(generation, behind=behind, failing=failing)


def _any_rewritten(world: IndexWorld) -> bool:
    return any(relation.rewritten for relation in world.relations.values())


def _inside(place: int, schema: str, world: IndexWorld, *, rows_too: bool) -> Sql:
    return compose(
        "SELECT {place} AS place, (SELECT max(sequence) FROM {clock}) AS clock, {behind} AS behind,"
        " {emptied} AS emptied",
        place=place,
        emptied=_emptied(schema, world) if rows_too else Sql("json_build_object()"),
        clock=identifier(schema, names.CLOCK),
        behind=_behind(schema, world),
    )


def _behind(schema: str, world: IndexWorld) -> Sql:
    """Return a JSON object of how many documents wait, and of those fail, by generation, where it counts."""
    counts = [
        count
        for generation in world.generations
        if (generation.state == "loading" or generation is not world.generation)
        and _has(world, names.DOCUMENTS, "id", "sequence")
        and _has(world, names.applied_table(generation.number), *_PROGRESS)
        for count in (literal(str(generation.number)), _waiting(schema, world, generation))
    ]
    return compose("json_build_object({counts})", counts=join(", ", counts))


def _emptied(schema: str, world: IndexWorld) -> Sql:
    """Return a JSON object: of each table whether rows are missing that must be there by another one.

    A few of the oldest are looked for, by their keys: also where others came after the rest was removed. They
    are written, and go, in one transaction; and a document's own row stays when it is deleted or erased.
    """
    documents, versions = identifier(schema, names.DOCUMENTS), identifier(schema, names.VERSIONS)
    answers: list[Sql] = []
    if has_documents := _has(world, names.DOCUMENTS, "id", "version", "deleted"):
        check = compose(
            "(SELECT sequence > 0 AND NOT EXISTS (SELECT FROM {documents}) FROM {clock} LIMIT 1)",
            documents=documents,
            clock=identifier(schema, names.CLOCK),
        )
        answers += [literal(names.DOCUMENTS), check]
    if has_documents and _has(world, names.VERSIONS, "document_id", "version"):
        check = _one_lacks(
            compose("SELECT id, version FROM {table} WHERE NOT deleted ORDER BY id", table=documents),
            compose(
                "SELECT FROM {table} v WHERE (v.document_id, v.version) = (o.id, o.version)", table=versions
            ),
        )
        answers += [literal(names.VERSIONS), check]
    if world.generation is not None:
        answers += _emptied_of(schema, world, world.generation.number)
    return compose("json_build_object({answers})", answers=join(", ", answers))


def _emptied_of(schema: str, world: IndexWorld, generation: int) -> list[Sql]:
    made, done = names.chunks_table(generation), names.applied_table(generation)
    if not (_has(world, made, "document_id", "ordinal") and _has(world, done, "document_id", "chunks")):
        return []
    chunks, applied = identifier(schema, made), identifier(schema, done)
    of_chunks = _one_lacks(
        compose("SELECT document_id FROM {table} WHERE chunks > 0 ORDER BY document_id", table=applied),
        compose("SELECT FROM {table} c WHERE c.document_id = o.document_id", table=chunks),
    )
    of_applied = compose(
        # Workers look at all of them where nothing is left below the mark.
        "({lacks} AND EXISTS (SELECT FROM polaris.generations"
        " WHERE index_id = {index} AND number = {number} AND low_water > 0))",
        lacks=_one_lacks(
            compose("SELECT document_id FROM {table} ORDER BY document_id, ordinal", table=chunks),
            compose("SELECT FROM {table} a WHERE a.document_id = o.document_id", table=applied),
        ),
        index=world.number,
        number=generation,
    )
    return [literal(made), of_chunks, literal(done), of_applied]


def _one_lacks(oldest: Sql, partner: Sql) -> Sql:
    return compose(
        "EXISTS (SELECT FROM ({oldest} LIMIT {few}) o WHERE NOT EXISTS ({partner}))",
        oldest=oldest,
        few=_FEW,
        partner=partner,
    )


_PROGRESS = ("document_id", "sequence", "failed_sequence", "tries")


def _has(world: IndexWorld, table: str, *columns: str) -> bool:
    seen = world.relations.get(table)
    return (
        seen is not None and seen.kind == "r" and {column.name for column in seen.columns}.issuperset(columns)
    )


def _waiting(schema: str, world: IndexWorld, generation: GenerationRow) -> Sql:
    return compose(
        "(SELECT json_build_array(count(*), count(*) FILTER (WHERE tries > 0))"
        " FROM (SELECT a.tries FROM {documents} d LEFT JOIN {applied} a ON a.document_id = d.id"
        " WHERE d.sequence > (SELECT low_water FROM polaris.generations"
        " WHERE index_id = {number} AND number = {generation})"
        " AND {behind} LIMIT {limit}) w)",
        behind=layout.BEHIND,
        documents=identifier(schema, names.DOCUMENTS),
        applied=identifier(schema, names.applied_table(generation.number)),
        number=world.number,
        generation=generation.number,
        limit=BEHIND_LIMIT,
    )


_SEARCHED = ("document_id", "version", "ordinal", "span_start", "span_end", "embedding")


def _canary(connection: Connection, schema: str, world: IndexWorld) -> str | None:
    """Return the index by which the planner would find the nearest vectors; None where it uses none."""
    generation = world.generation
    if generation is None or not _has(world, names.chunks_table(generation.number), *_SEARCHED):
        return None
    # As the service sends it (a test compares the two plans), with one of the vectors that are there.
    statement = compose(
        "EXPLAIN (FORMAT JSON) WITH cfg AS MATERIALIZED ("
        "SELECT (SELECT embedding FROM {chunks} LIMIT 1) AS qv,"
        " set_config('hnsw.ef_search', {ef}, true) AS ef)"
        " SELECT n.* FROM cfg CROSS JOIN LATERAL (SELECT c.document_id, c.version, c.ordinal, c.span_start,"
        " c.span_end, (c.embedding {operator} cfg.qv) AS distance FROM {chunks} c"
        " ORDER BY (c.embedding {operator} cfg.qv) LIMIT 10) n",
        chunks=identifier(schema, names.chunks_table(generation.number)),
        ef=literal(str(generation.ef_search)),
        operator=layout.DISTANCE_OPERATOR[Embedding.model_validate(generation.embedding).metric],
    )
    plan = connection.exec_driver_sql(statement, execution_options={"no_parameters": True}).scalar_one()
    return _index_of(plan if isinstance(plan, list) else json.loads(plan))


def _index_of(plan: Any) -> str | None:
    """Return the name of the first ordered index scan in a plan, depth first."""
    if isinstance(plan, list):
        return next((found for part in plan if (found := _index_of(part))), None)
    if not isinstance(plan, Mapping):
        return None
    if plan.get("Node Type") == "Index Scan" and "Order By" in plan:
        return str(plan["Index Name"])
    return next(
        (found for key in ("Plan", "Plans") if (found := _index_of(plan.get(key)))),
        None,
    )


__all__ = ["gather", "gather_loads", "gather_own", "gather_row"]
