"""What there is of the logins that one object wants: ledger, roles, Secrets, Vault."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import text

from polaris import names
from polaris.catalog import CONSUMER_TIMEOUT_SECONDS
from polaris.errors import VaultRefused, VaultUnavailable
from polaris.telemetry import logger
from polaris_operator import login_secret
from polaris_operator.doors import Doors
from polaris_operator.objects import Objects, Resource
from polaris_operator.plan.credentials import REQUEST_SECONDS
from polaris_operator.postgres import Server
from polaris_operator.vault import Vault
from polaris_operator.world.credentials import (
    ConsumerSeen,
    CredentialsWorld,
    Login,
    SecretName,
    SecretSeen,
    VaultSeen,
    Wanted,
)

log = logger(__name__)

_LOGINS = text("""
SELECT c.*, r.rolname IS NOT NULL AS role_exists,
  (SELECT id FROM polaris.catalog) AS catalog
FROM polaris.credentials c
LEFT JOIN pg_catalog.pg_roles r ON r.rolname = coalesce(c.username,
  'polaris_' || (SELECT id FROM polaris.catalog) || '_login_' || c.id)
WHERE c.owner = :owner AND c.state <> 'revoked' ORDER BY c.id
""")
_LAST_EPOCHS = text("SELECT name, max(epoch) FROM polaris.credentials WHERE owner = :owner GROUP BY name")
_CONSUMERS = text("""
SELECT kind, username, epoch, id FROM polaris.consumers
WHERE reported_at > now() - make_interval(secs => :timeout) ORDER BY id
""")
_KNOWN_LEASES = text("SELECT lease_id FROM polaris.credentials WHERE lease_id = ANY(:leases)")
# Somebody (of another installation, too) may be in the middle of issuing from the same role.
_UNDER_WAY = text("""
SELECT EXISTS (SELECT FROM polaris.credentials WHERE state = 'requested' AND source = 'vault'
  AND group_role = ANY(:groups) AND requested_at > now() - make_interval(secs => :seconds))
""")
# Made by Vault's login by our statement (`bootstrap.creation_statement`), which gives us ADMIN; a
# login that a person added to a group is not touched.
_STRAYS = text("""
SELECT r.rolname FROM pg_auth_members m
JOIN pg_roles r ON r.oid = m.member JOIN pg_roles g ON g.oid = m.roleid
WHERE g.rolname = ANY(:groups) AND r.rolcanlogin
  AND EXISTS (SELECT FROM pg_auth_members a JOIN pg_roles o ON o.oid = a.member
    WHERE a.roleid = r.oid AND o.rolname = :operator AND a.admin_option)
  AND NOT EXISTS (SELECT FROM polaris.credentials c WHERE c.username = r.rolname)
ORDER BY 1
""")


def gather_credentials(
    doors: Doors, resource: Resource, owner: str, wanted: Sequence[Wanted], now: datetime
) -> CredentialsWorld:
    """Return what there is of the logins of `owner`, which `resource` stands for.

    Vault being away is part of the answer, not an error.
    """
    with doors.postgres.read() as connection:
        catalog: str = connection.execute(text("SELECT id FROM polaris.catalog")).scalar_one()
        logins = tuple(_login(row) for row in connection.execute(_LOGINS, {"owner": owner}).mappings())
        epochs = {row[0]: row[1] for row in connection.execute(_LAST_EPOCHS, {"owner": owner})}
        consumers = tuple(
            ConsumerSeen(*row)
            for row in connection.execute(_CONSUMERS, {"timeout": CONSUMER_TIMEOUT_SECONDS})
        )
    world = CredentialsWorld(
        owner=owner,
        owner_uid=resource.uid,
        catalog=catalog,
        logins=logins,
        last_epochs=epochs,
        secrets=_secrets(doors.objects, doors.postgres.server, wanted, logins),
        consumers=consumers,
    )
    if doors.vault is None:
        return world
    looked_for = wanted or logins
    return replace(
        world, vault=_look_at_vault(doors, doors.vault, world, wanted, now) if looked_for else VaultSeen()
    )


def _login(row: Mapping[Any, Any]) -> Login:
    username = row["username"]
    if username is None and row["source"] == "operator":
        username = names.login(row["catalog"], row["id"])
    return Login(
        id=row["id"],
        name=row["name"],
        epoch=row["epoch"],
        group_role=row["group_role"],
        source=row["source"],
        state=row["state"],
        secret=(row["secret_namespace"], row["secret_name"]),
        requested_at=row["requested_at"],
        username=username,
        lease_id=row["lease_id"],
        issued_at=row["issued_at"],
        expires_at=row["expires_at"],
        superseded_at=row["superseded_at"],
        overlap_seconds=row["overlap_seconds"],
        role_exists=row["role_exists"],
    )


# --- Secrets


def _secrets(
    objects: Objects, server: Server, wanted: Iterable[Wanted], logins: Sequence[Login]
) -> dict[SecretName, SecretSeen]:
    found = {}
    for one in wanted:
        secret = objects.secret(*one.secret)
        if secret is None:
            continue
        epoch = login_secret.epoch_of(secret.data)
        leads_to = login_secret.led_elsewhere(secret.data, server)
        row = next((x for x in logins if (x.name, x.epoch, x.secret) == (one.name, epoch, one.secret)), None)
        consistent = (
            row is not None
            and row.username is not None
            and row.expires_at is not None
            and login_secret.intact(secret.data, leads_to, row.username, row.epoch, row.expires_at)
        )
        found[one.secret] = SecretSeen(
            owner_uid=secret.owner_uid,
            epoch=epoch,
            intact=consistent and leads_to == server,
            elsewhere=consistent and leads_to != server,
        )
    return found


# --- Vault


def _look_at_vault(
    doors: Doors, vault: Vault, world: CredentialsWorld, wanted: Sequence[Wanted], now: datetime
) -> VaultSeen:
    groups = dict.fromkeys(one.group_role for one in wanted)
    try:
        roles = {names.vault_role(world.catalog, group): group for group in groups}
        right = frozenset(role for role, group in roles.items() if vault.issues_members(role, group))
        return replace(_orphans(doors, vault, world, now), roles=right)
    except VaultUnavailable as error:
        return VaultSeen(unavailable=str(error))
    except VaultRefused as error:
        return VaultSeen(refused=str(error))


def _orphans(doors: Doors, vault: Vault, world: CredentialsWorld, now: datetime) -> VaultSeen:
    """Return leases and logins that somebody asked for and died before writing them down.

    Leases are listed before the ledger is read, and logins together with it, so what is issued
    meanwhile is in neither or is known to be under way.
    """
    settled = now - timedelta(seconds=REQUEST_SECONDS)
    groups = {
        login.group_role
        for login in world.logins
        if (login.source, login.state) == ("vault", "requested") and login.requested_at <= settled
    }
    if not groups:
        return VaultSeen()
    leases = _leases(vault, [names.vault_role(world.catalog, group) for group in groups])
    with doors.postgres.read() as connection:
        under_way = {"groups": list(groups), "seconds": REQUEST_SECONDS}
        if connection.execute(_UNDER_WAY, under_way).scalar_one():
            return VaultSeen()
        known = set(connection.execute(_KNOWN_LEASES, {"leases": leases}).scalars())
        looked_for = {"groups": list(groups), "operator": names.OPERATOR_ROLE}
        strays = tuple(connection.execute(_STRAYS, looked_for).scalars())
    return VaultSeen(orphans=tuple(lease for lease in leases if lease not in known), strays=strays)


def _leases(vault: Vault, roles: Iterable[str]) -> list[str]:
    try:
        return [lease for role in roles for lease in vault.leases(role)]
    except VaultRefused as error:
        log.warning("a lease may be left until it ends: Vault's policy lets nobody look", error=str(error))
        return []
