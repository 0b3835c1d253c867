"""What has to be done for a PolarisDatabase: pure, from its spec, what was observed, and the time.

First what must be there before anything else can be seen, each in a round of its own: the catalog,
then the fence. Then roles, grants and logins, in one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import polaris
from polaris import names
from polaris.catalog import GRANTS
from polaris.names import FINALIZER, Purpose
from polaris.spec import Migrations, PolarisDatabaseSpec
from polaris.sql import Sql, compose, identifier, join
from polaris.status import Reason
from polaris_operator import bootstrap, ledger
from polaris_operator.objects import Key, Resource
from polaris_operator.plan.credentials import plan_credentials
from polaris_operator.steps import (
    Blocked,
    DeleteVaultRole,
    Execute,
    Migrate,
    Plan,
    RevokeLogin,
    SetFinalizer,
    Step,
    TakeOver,
)
from polaris_operator.world.credentials import CredentialsWorld, Wanted
from polaris_operator.world.database import (
    PUBLIC,
    Acl,
    CatalogSeen,
    DatabaseWorld,
    FenceSeen,
    Group,
    OwnLogin,
)

OLDEST_SERVER = 130000
OLDEST_VECTOR = "0.8.4"
PURPOSES: tuple[Purpose, ...] = ("query", "worker")

# Transactions that began with the operator's old login are given so long to end.
_OLD_LOGIN_SECONDS = 60.0
_LOOK_AGAIN_SECONDS = 30.0


@dataclass(frozen=True)
class _Case:
    """A database whose catalog we hold."""

    resource: Resource
    spec: PolarisDatabaseSpec
    world: DatabaseWorld
    catalog: CatalogSeen
    credentials: CredentialsWorld
    now: datetime

    @property
    def held(self) -> bool:
        """Whether the object has our finalizer."""
        return FINALIZER in self.resource.finalizers


def plan_database(resource: Resource, spec: PolarisDatabaseSpec, world: DatabaseWorld, now: datetime) -> Plan:
    """Return what leads from the world to the spec, and what stands in the way."""
    if (reason := _not_worth_waiting(resource, spec, world, now)) is not None:
        return Plan(_let_go(reason) if FINALIZER in resource.finalizers else ())
    if (blocked := in_the_way(spec, world)) is not None:
        return Plan(blocked=blocked, look_again_seconds=_LOOK_AGAIN_SECONDS)
    catalog, credentials = world.catalog, world.credentials
    if catalog is None or _behind(catalog, world):
        return Plan((_migrate(world),))
    if world.fence is None or world.fence != catalog.fence or credentials is None:
        return Plan((_take_over(world),))
    case = _Case(resource, spec, world, catalog, credentials, now)
    if resource.deleted_at is None:
        return _plan(case)
    return _plan_in_use(case) if catalog.in_use_by else _plan_deletion(case)


def _not_worth_waiting(
    resource: Resource, spec: PolarisDatabaseSpec, world: DatabaseWorld, now: datetime
) -> str | None:
    if resource.deleted_at is None or (world.catalog is not None and world.catalog.in_use_by):
        return None
    if now >= resource.deleted_at + timedelta(seconds=spec.deletion_deadline_seconds):
        return f"{spec.deletion_deadline_seconds} seconds have passed"
    return "nothing was made for it" if world.catalog is None and not world.missing else None


def _plan(case: _Case) -> Plan:
    logins = plan_credentials(
        wanted_logins(case.resource.key, case.spec, case.catalog.id), case.credentials, case.now
    )
    own, own_again = _own(case)
    again = [time for time in (logins.look_again_seconds, own_again) if time is not None]
    steps = (*_groups(case), *_grants(case.catalog), *own, *_hold(case), *logins.steps)
    return Plan(steps, (), logins.blocked, min(again, default=None))


def _plan_in_use(case: _Case) -> Plan:
    """Keep it going: indexes are in it."""
    plan = _plan(case)
    return Plan(plan.steps, (), _in_use(case.catalog), _LOOK_AGAIN_SECONDS)


def _plan_deletion(case: _Case) -> Plan:
    """End the logins, then what issues them, then let go. The catalog and its groups stay.

    The operator's own login of before goes too, at once: nobody leads here any more who would end it later.
    """
    if case.credentials.logins:
        return plan_credentials((), case.credentials, case.now)
    steps = [*_own_of_before(case), *_forget_vault_roles(case)]
    steps += _let_go("its logins are revoked") if case.held else ()
    return Plan(tuple(steps))


def _own_of_before(case: _Case) -> tuple[Step, ...]:
    if case.world.own is None or not _vault_answers(case.credentials):
        return ()
    return tuple(_revoke_own(case.catalog, case.world.own.username))


def _forget_vault_roles(case: _Case) -> Iterator[Step]:
    for role in sorted(case.credentials.vault.roles if case.credentials.vault else ()):
        yield Step(Reason.DELETED, f"Vault's role {role} is no longer needed", DeleteVaultRole(role))


# --- who is who


def wanted_logins(key: Key, spec: PolarisDatabaseSpec, catalog: str) -> tuple[Wanted, ...]:
    """Return the logins of service and workers."""
    secrets = {"query": spec.logins.query.secret_name, "worker": spec.logins.worker.secret_name}
    return tuple(
        Wanted(purpose, names.group_role(catalog, purpose), (key.namespace, secrets[purpose]))
        for purpose in PURPOSES
    )


def logins_owner(key: Key, installation: UUID) -> str:
    """Return what the ledger calls the owner of the logins of service and workers.

    Two clusters may use one database, each with a PolarisDatabase of the same name.
    """
    return f"database/{installation}/{key.namespace}/{key.name}"


def own_owner(key: Key, installation: UUID) -> str:
    """Return what the ledger calls the owner of the operator's own logins."""
    return f"operator/{installation}/{key.namespace}/{key.name}"


# --- what stands in the way of everything


def in_the_way(spec: PolarisDatabaseSpec, world: DatabaseWorld) -> Blocked | None:
    """Return why the database can't be used yet, where we can't change that."""
    return next(_obstacles(spec, world), None)


def can_look_inside(world: DatabaseWorld) -> bool:
    """Whether the catalog can be looked for: the server is one of ours, and all was granted."""
    return world.server_version_number >= OLDEST_SERVER and not world.missing


def _obstacles(spec: PolarisDatabaseSpec, world: DatabaseWorld) -> Iterator[Blocked]:
    catalog = world.catalog
    if world.server_version_number < OLDEST_SERVER:
        yield Blocked(
            Reason.VERSION_UNSUPPORTED,
            f"this is PostgreSQL {world.server_version}, and POLARIS needs {OLDEST_SERVER // 10000} or newer",
            stalled=True,
        )
    if world.standby:
        yield Blocked(Reason.DATABASE_UNAVAILABLE, f"{spec.host} is a standby: it only reads", stalled=False)
    if world.pooled:
        yield Blocked(
            Reason.PREREQUISITE_MISSING,
            f"a connection pooler such as PgBouncer answers at {spec.host}:{spec.port}: the operator's locks"
            " and builds live in sessions of PostgreSQL, so it needs a direct connection",
            stalled=True,
        )
    if world.missing:
        yield _missing(spec, world)
    if world.vector_version is not None and version(world.vector_version) < version(OLDEST_VECTOR):
        yield _old_vector(world.vector_version, world.vector_available)
    if catalog is not None and catalog.oldest_code > polaris.CATALOG_LEVEL:
        yield Blocked(
            Reason.CATALOG_TOO_NEW,
            f"this is POLARIS {polaris.__version__} (catalog level {polaris.CATALOG_LEVEL}), and the catalog"
            f" needs level {catalog.oldest_code} or newer: upgrade the operator",
            stalled=True,
        )
    if spec.migrations == Migrations.MANUAL and (catalog is None or _behind(catalog, world)):
        present = "there is no catalog" if catalog is None else f"the catalog is at {catalog.revision}"
        yield Blocked(
            Reason.MIGRATION_NEEDED,
            f"{present}, this POLARIS needs {world.head}, and migrations is Manual: run `polaris migrate`",
            stalled=True,
        )
    if catalog is not None and catalog.fence is not None and _is_replaced(world.fence, catalog.fence):
        yield Blocked(
            Reason.NOT_OWNER,
            f"another operator of this installation has taken over: {catalog.fence.holder},"
            f" epoch {catalog.fence.epoch}",
            stalled=True,
        )


def _is_replaced(ours: FenceSeen | None, seen: FenceSeen) -> bool:
    """Whether another process took over after us. A smaller epoch is a backup's: it is taken over again."""
    return ours is not None and ours != seen and seen.epoch >= ours.epoch


def version(said: str) -> tuple[int, ...]:
    """Return a version as numbers that compare: "0.8.10" is after "0.8.4"."""
    return tuple(int(number) for number in re.findall(r"\d+", said)[:3])


def _missing(spec: PolarisDatabaseSpec, world: DatabaseWorld) -> Blocked:
    texts = [bootstrap.remedy(grant, spec.database) for grant in world.missing]
    what = ", ".join(_NAMED[grant] for grant in world.missing)
    return Blocked(
        Reason.PREREQUISITE_MISSING,
        f"{what}. An administrator grants it once, in database {spec.database}"
        f" (`polaris bootstrap` prints all of it):\n{''.join(texts)}",
        stalled=True,
    )


_NAMED = {
    bootstrap.Grant.EXTENSION: "the extension vector is missing, and only a superuser can create it",
    bootstrap.Grant.OPERATOR_ROLE: f"role {names.OPERATOR_ROLE} is missing, may log in, or lacks CREATEROLE",
    bootstrap.Grant.STATISTICS: f"{names.OPERATOR_ROLE} is no member of pg_read_all_stats",
    bootstrap.Grant.SIGNALS: f"{names.OPERATOR_ROLE} is no member of pg_signal_backend",
    bootstrap.Grant.DATABASE: f"{names.OPERATOR_ROLE} lacks CREATE on the database, or CONNECT to hand on",
    bootstrap.Grant.ISSUER_ROLE: f"role {names.ISSUER_ROLE} is missing",
    bootstrap.Grant.ISSUER_ADMIN: f"{names.ISSUER_ROLE} lacks ADMIN on {names.OPERATOR_ROLE}",
}


def _old_vector(found: str, available: str | None) -> Blocked:
    can = available is not None and version(available) >= version(OLDEST_VECTOR)
    remedy = (
        "run ALTER EXTENSION vector UPDATE"
        if can
        else f"install pgvector {OLDEST_VECTOR} or newer there first"
    )
    return Blocked(
        Reason.VERSION_UNSUPPORTED,
        f"this is pgvector {found}, and POLARIS needs {OLDEST_VECTOR} or newer"
        f" (CVE-2026-3172, and damaged graphs after vacuum): {remedy}",
        stalled=True,
    )


# --- catalog and fence


def _behind(catalog: CatalogSeen, world: DatabaseWorld) -> bool:
    """Whether a migration is due. A newer version's catalog is not behind."""
    return catalog.known and catalog.revision != world.head


def _migrate(world: DatabaseWorld) -> Step:
    present = "there is no catalog" if world.catalog is None else f"it is at {world.catalog.revision}"
    return Step(Reason.MIGRATING, f"Bring the catalog to {world.head}: {present}", Migrate(world.head))


def _take_over(world: DatabaseWorld) -> Step:
    process = world.process
    fence = world.catalog.fence if world.catalog else None
    before = "nobody wrote before" if fence is None else f"{fence.holder} did, with epoch {fence.epoch}"
    return Step(
        Reason.PROVISIONING,
        f"Write for installation {process.name} from now on: {before}",
        TakeOver(process.installation, process.name),
    )


# --- roles


def _groups(case: _Case) -> Iterator[Step]:
    for purpose in PURPOSES:
        role = names.group_role(case.catalog.id, purpose)
        found = case.catalog.groups.get(role)
        if statements := tuple(_group(role, found, case.spec.database, vault=case.world.vault)):
            state = "is missing" if found is None else "is not as it should be"
            yield Step(Reason.ROLE_MISSING, f"Group {role} {state}", Execute(statements))


def _group(role: str, found: Group | None, database: str, *, vault: bool) -> Iterator[Sql]:
    name = identifier(role)
    if found is None:
        yield compose("CREATE ROLE {role} NOLOGIN", role=name)
        found = Group(connects=False, issuer_has_admin=False)
    if found.login:
        yield compose("ALTER ROLE {role} NOLOGIN", role=name)
    if not found.connects:
        yield compose(
            "GRANT CONNECT ON DATABASE {database} TO {role}", database=identifier(database), role=name
        )
    if vault and not found.issuer_has_admin:
        yield compose("GRANT {role} TO {issuer} WITH ADMIN OPTION", role=name, issuer=bootstrap.ISSUER)


# --- grants


def wanted_acl(catalog: str) -> dict[tuple[str, str, str], frozenset[str]]:
    """Return all that the groups may do in the catalog; PUBLIC may nothing."""
    acl: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for purpose in PURPOSES:
        role = names.group_role(catalog, purpose)
        acl[role, "", ""].add("USAGE")
        for table, privileges in GRANTS[purpose].items():
            for privilege, columns in re.findall(r"(\w+)(?:\s*\(([^)]*)\))?", privileges):
                for column in re.split(r"\s*,\s*", columns):
                    acl[role, table, column].add(privilege)
    return {place: frozenset(privileges) for place, privileges in acl.items()}


def _grants(catalog: CatalogSeen) -> Iterator[Step]:
    wanted = wanted_acl(catalog.id)
    lacking, beyond = _less(wanted, catalog.acl), _less(catalog.acl, wanted)
    statements = (
        *_say("GRANT {what} ON {on} TO {role}", lacking),
        *_say("REVOKE {what} ON {on} FROM {role}", beyond),
    )
    if statements:
        who = ", ".join(sorted({place[0] for place in (*lacking, *beyond)}))
        yield Step(Reason.GRANT_MISSING, f"Privileges in the catalog differ, of {who}", Execute(statements))


def _less(one: Acl, other: Acl) -> dict[tuple[str, str, str], frozenset[str]]:
    differences = {place: privileges - other.get(place, frozenset()) for place, privileges in one.items()}
    return {place: privileges for place, privileges in differences.items() if privileges}


def _say(template: str, acl: Acl) -> Iterator[Sql]:
    for (grantee, relation, column), privileges in sorted(acl.items()):
        where = compose("({column})", column=identifier(column)) if column else Sql("")
        yield compose(
            template,
            what=join(", ", [Sql(f"{privilege} {where}".rstrip()) for privilege in sorted(privileges)]),
            on=identifier(names.CATALOG_SCHEMA, relation)
            if relation
            else compose("SCHEMA {schema}", schema=identifier(names.CATALOG_SCHEMA)),
            role=Sql(PUBLIC) if grantee == PUBLIC else identifier(grantee),
        )


# --- the operator's own login


def _own(case: _Case) -> tuple[tuple[Step, ...], float | None]:
    """Return the steps that keep the ledger of our own logins, and when the next one is due."""
    own, catalog = case.world.own, case.catalog
    if own is None:
        return (), None
    steps: list[Step] = []
    due = [(own.issued_at + (own.expires_at - own.issued_at) / 2 - case.now).total_seconds()]
    if all(seen.username != own.username for seen in catalog.own_logins):
        steps.append(_write_down(case, own))
    if _vault_answers(case.credentials):
        settled = _settled(own, case.now)
        if settled <= 0:
            steps += _revoke_own(catalog, own.username)
        elif len(catalog.own_logins) > 1:
            due.append(settled)
    return tuple(steps), max(min(due), 1.0)


def _settled(own: OwnLogin, now: datetime) -> float:
    life = (own.expires_at - own.issued_at).total_seconds()
    return min(_OLD_LOGIN_SECONDS, life / 4) - (now - own.issued_at).total_seconds()


def _vault_answers(credentials: CredentialsWorld) -> bool:
    vault = credentials.vault
    return vault is not None and not vault.unavailable and not vault.refused


def _write_down(case: _Case, own: OwnLogin) -> Step:
    installation = case.world.process.installation
    owner = own_owner(case.resource.key, installation)
    statement = ledger.record(owner, installation, case.catalog.last_own_epoch + 1, own)
    return Step(
        Reason.LOGIN_MISSING,
        f"The ledger learns of the operator's own login {own.username}, so that a crash leaks no lease",
        Execute((statement,)),
    )


def _revoke_own(catalog: CatalogSeen, present: str) -> Iterator[Step]:
    for seen in catalog.own_logins:
        if seen.username == present or seen.builds:
            continue
        yield Step(
            Reason.LOGIN_SUPERSEDED,
            f"The operator's own login {seen.username} of before is revoked",
            RevokeLogin(seen.id, seen.username, seen.lease_id),
        )


# --- the object and its end


def _hold(case: _Case) -> tuple[Step, ...]:
    if case.held or case.resource.deleted_at is not None:
        return ()
    sentence = "Hold the object until the logins made for it are revoked"
    return (Step(Reason.PROVISIONING, sentence, SetFinalizer(present=True)),)


def _let_go(why: str) -> tuple[Step, ...]:
    return (Step(Reason.DELETED, f"Hold the object no more: {why}", SetFinalizer(present=False)),)


def _in_use(catalog: CatalogSeen) -> Blocked:
    first = ", ".join(catalog.in_use_by[:5])
    more = f" and {len(catalog.in_use_by) - 5} more" if len(catalog.in_use_by) > 5 else ""
    return Blocked(
        Reason.IN_USE, f"indexes are in it: {first}{more}; it goes when they are gone", stalled=False
    )
