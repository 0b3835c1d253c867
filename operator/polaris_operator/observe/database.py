"""What there is of one database: versions, what was granted, the catalog, its roles and grants."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime

from sqlalchemy import Connection, text

import polaris_migrations
from polaris import names
from polaris.spec import PolarisDatabaseSpec
from polaris.sql import compose
from polaris_operator import sessions
from polaris_operator.bootstrap import NEEDED_WITH_VAULT_ONLY, Grant
from polaris_operator.doors import Doors
from polaris_operator.objects import Key, Resource, database_of
from polaris_operator.observe.credentials import gather_credentials
from polaris_operator.plan.database import (
    PURPOSES,
    can_look_inside,
    in_the_way,
    logins_owner,
    own_owner,
    wanted_logins,
)
from polaris_operator.postgres import is_pooled
from polaris_operator.world.database import (
    PUBLIC,
    CatalogSeen,
    DatabaseWorld,
    FenceSeen,
    Group,
    OwnSeen,
    Tombstone,
)

_SERVER = text("""
SELECT current_setting('server_version') AS version,
  current_setting('server_version_num')::integer AS number,
  pg_is_in_recovery() AS standby,
  (SELECT extversion FROM pg_extension WHERE extname = 'vector') AS vector,
  (SELECT default_version FROM pg_available_extensions WHERE name = 'vector') AS available
""")
# A role that is missing answers every question about it with NULL, which counts as no.
_GRANTED = text("""
SELECT coalesce((SELECT rolcreaterole AND NOT rolcanlogin FROM pg_roles WHERE rolname = :operator), false)
    AS operator_role,
  coalesce(pg_has_role(o.oid, 'pg_read_all_stats', 'USAGE'), false) AS statistics,
  coalesce(pg_has_role(o.oid, 'pg_signal_backend', 'USAGE'), false) AS signals,
  coalesce(has_database_privilege(o.oid, current_database(), 'CREATE')
    AND (has_database_privilege('public', current_database(), 'CONNECT')
      OR has_database_privilege(o.oid, current_database(), 'CONNECT WITH GRANT OPTION')), false) AS database,
  i.oid IS NOT NULL AS issuer_role,
  EXISTS (SELECT FROM pg_auth_members m WHERE m.roleid = o.oid AND m.member = i.oid AND m.admin_option)
    AS issuer_admin
FROM (SELECT) nothing
LEFT JOIN pg_roles o ON o.rolname = :operator LEFT JOIN pg_roles i ON i.rolname = :issuer
""")
_CATALOG = text("SELECT id, oldest_code FROM polaris.catalog")
_FENCE = text("SELECT epoch, holder FROM polaris.fences WHERE installation_id = :installation")
_GROUPS = text("""
SELECT r.rolname AS name, r.rolcanlogin AS login,
  has_database_privilege(r.oid, current_database(), 'CONNECT') AS connects,
  EXISTS (SELECT FROM pg_auth_members m JOIN pg_roles i ON i.oid = m.member
    WHERE m.roleid = r.oid AND i.rolname = :issuer AND m.admin_option) AS admin
FROM pg_roles r WHERE r.rolname = ANY(:names)
""")
# What was granted in so many words: on the schema, on whole relations, on columns.
_ACL = text("""
SELECT x.relation, x.column_name, x.privilege_type, r.rolname AS grantee FROM (
  SELECT '' AS relation, '' AS column_name, acl.grantee, acl.privilege_type
  FROM pg_namespace n, aclexplode(n.nspacl) acl WHERE n.nspname = :schema
  UNION ALL
  SELECT c.relname, '', acl.grantee, acl.privilege_type
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace, aclexplode(c.relacl) acl
  WHERE n.nspname = :schema
  UNION ALL
  SELECT c.relname, a.attname, acl.grantee, acl.privilege_type
  FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace,
    aclexplode(a.attacl) acl
  WHERE n.nspname = :schema AND NOT a.attisdropped
) x LEFT JOIN pg_roles r ON r.oid = x.grantee
WHERE x.grantee = 0 OR r.rolname = ANY(:names)
""")
_INDEXES = text("""
SELECT namespace || '/' || name AS name, installation_id = :installation AS ours
FROM polaris.indexes WHERE state <> 'released' ORDER BY 1
""")
_TOMBSTONES = text("""
SELECT id, namespace || '/' || name AS name, released_at, drop_after FROM polaris.indexes
WHERE installation_id = :installation AND state = 'released' AND drop_after IS NOT NULL
ORDER BY drop_after, id
""")
_OWN = text(
    compose(
        """
SELECT c.id, c.epoch, c.username, c.lease_id, c.state,
  EXISTS (SELECT FROM pg_stat_activity a WHERE a.usename = c.username
    AND a.application_name ~ {builds}) AS builds
FROM polaris.credentials c WHERE c.owner = :owner ORDER BY c.epoch
""",
        builds=sessions.BUILDS,
    )
)


def gather_database(
    resource: Resource, spec: PolarisDatabaseSpec, doors: Doors, now: datetime
) -> DatabaseWorld:
    """Return the world of a PolarisDatabase.

    What can't be seen yet stays None: a plan that makes it is followed by another look.
    """
    with doors.postgres.probe() as connection:
        server = connection.execute(_SERVER).one()
        pooled = is_pooled(connection)
        missing = tuple(_missing(connection, server.vector, vault=doors.vault is not None))
    fence = doors.postgres.fence
    world = DatabaseWorld(
        process=doors.process,
        head=polaris_migrations.HEAD,
        server_version=server.version.split(" ")[0],
        server_version_number=server.number,
        standby=server.standby,
        pooled=pooled,
        vector_version=server.vector,
        vector_available=server.available,
        missing=missing,
        fence=None if fence is None else FenceSeen(fence.epoch, fence.holder),
        own=doors.own,
        vault=doors.vault is not None,
    )
    if not can_look_inside(world):
        return world
    with doors.postgres.read() as connection:
        catalog = _catalog(connection, resource.key, doors)
    if catalog is not None and resource.deleted_at is not None:
        catalog = replace(catalog, in_use_by=(*catalog.in_use_by, *_leaving(catalog, resource.key, doors)))
    world = replace(world, catalog=catalog)
    if catalog is None or fence is None or in_the_way(spec, world) is not None:
        return world
    wanted = wanted_logins(resource.key, spec, catalog.id)
    owner = logins_owner(resource.key, doors.process.installation)
    return replace(world, credentials=gather_credentials(doors, resource, owner, wanted, now))


def _leaving(catalog: CatalogSeen, database: Key, doors: Doors) -> Iterator[str]:
    """Return objects on their way out which the catalog has let go of: without us nobody lets them go."""
    for index in doors.objects.list("PolarisIndex"):
        name = f"{index.key.namespace}/{index.key.name}"
        held = index.deleted_at is not None and names.FINALIZER in index.finalizers
        if held and database_of(index) == database and name not in catalog.in_use_by:
            yield name


def _missing(connection: Connection, vector: str | None, *, vault: bool) -> Iterator[Grant]:
    row = connection.execute(_GRANTED, {"operator": names.OPERATOR_ROLE, "issuer": names.ISSUER_ROLE}).one()
    granted = {
        Grant.EXTENSION: vector is not None,
        Grant.OPERATOR_ROLE: row.operator_role,
        Grant.STATISTICS: row.statistics,
        Grant.SIGNALS: row.signals,
        Grant.DATABASE: row.database,
        Grant.ISSUER_ROLE: row.issuer_role,
        Grant.ISSUER_ADMIN: row.issuer_admin,
    }
    for grant, there in granted.items():
        if not there and (vault or grant not in NEEDED_WITH_VAULT_ONLY):
            yield grant


def _catalog(connection: Connection, key: Key, doors: Doors) -> CatalogSeen | None:
    revision = polaris_migrations.current_revision(connection)
    if revision is None:
        return None
    installation = doors.process.installation
    catalog = connection.execute(_CATALOG).one()
    fence = connection.execute(_FENCE, {"installation": installation}).one_or_none()
    indexes = connection.execute(_INDEXES, {"installation": installation}).all()
    tombstones = connection.execute(_TOMBSTONES, {"installation": installation}).all()
    own = connection.execute(_OWN, {"owner": own_owner(key, installation)}).all()
    roles = [names.group_role(catalog.id, purpose) for purpose in PURPOSES]
    return CatalogSeen(
        id=catalog.id,
        revision=revision,
        known=revision in polaris_migrations.known_revisions(),
        oldest_code=catalog.oldest_code,
        fence=None if fence is None else FenceSeen(fence.epoch, fence.holder),
        groups=_groups(connection, roles),
        acl=_acl(connection, roles),
        indexes=len(indexes),
        in_use_by=tuple(row.name for row in indexes if row.ours),
        tombstones=tuple(
            Tombstone(row.id, names.living_name(row.name), row.released_at, row.drop_after)
            for row in tombstones
        ),
        own_logins=tuple(
            OwnSeen(row.id, row.epoch, row.username, row.lease_id, row.builds)
            for row in own
            if row.state != "revoked"
        ),
        last_own_epoch=max((row.epoch for row in own), default=0),
    )


def _groups(connection: Connection, roles: Sequence[str]) -> dict[str, Group]:
    found = connection.execute(_GROUPS, {"names": roles, "issuer": names.ISSUER_ROLE})
    return {row.name: Group(row.login, row.connects, row.admin) for row in found}


def _acl(connection: Connection, roles: Sequence[str]) -> dict[tuple[str, str, str], frozenset[str]]:
    acl: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for row in connection.execute(_ACL, {"names": roles, "schema": names.CATALOG_SCHEMA}):
        acl[row.grantee or PUBLIC, row.relation, row.column_name].add(row.privilege_type)
    return {place: frozenset(privileges) for place, privileges in acl.items()}
