"""Statements on the ledger of credentials: pure text, the same in a plan and when it is carried out.

======================  ===========================================================================
requested               nothing was asked of anybody yet
issued                  the login exists; its password is nowhere but in memory
published               the Secret holds it
superseded              a newer one is published; it is still valid
revoked                 made sure that it is gone
======================  ===========================================================================
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from polaris.names import OPERATOR_ROLE
from polaris.sql import Sql, compose, literal
from polaris_operator.steps import IssueLogin
from polaris_operator.world.database import OwnLogin

# Rows of the past are kept for people who ask what happened; the newest of a name for its epoch.
_KEEP_DAYS = 30


def request(action: IssueLogin, installation: UUID, source: str) -> Sql:
    """Return the statement that writes the row down, and returns its id and the catalog's."""
    return compose(
        "INSERT INTO polaris.credentials (installation_id, owner, name, epoch, group_role, source, state,"
        " secret_namespace, secret_name, overlap_seconds)"
        " VALUES ({installation}, {owner}, {name}, {epoch}, {group}, {source}, 'requested',"
        " {namespace}, {secret}, {overlap})"
        " RETURNING id, (SELECT id FROM polaris.catalog) AS catalog",
        installation=literal(str(installation)),
        owner=literal(action.owner),
        name=literal(action.name),
        epoch=action.epoch,
        group=literal(action.group_role),
        source=literal(source),
        namespace=literal(action.secret_namespace),
        secret=literal(action.secret_name),
        overlap=action.overlap_seconds,
    )


def issued(credential: int, username: str, lease_id: str | None, expires_at: datetime) -> Sql:
    """Return the statement that writes down what was issued."""
    return compose(
        "UPDATE polaris.credentials SET state = 'issued', username = {username}, lease_id = {lease},"
        " issued_at = now(), expires_at = {expires} WHERE id = {id} AND state = 'requested'",
        username=literal(username),
        lease=literal(lease_id) if lease_id else Sql("NULL"),
        expires=literal(expires_at.isoformat()),
        id=credential,
    )


def published(credential: int, owner: str, name: str) -> tuple[Sql, ...]:
    """Return the statements that make this the present login, and the one before superseded."""
    return (
        compose(
            "UPDATE polaris.credentials SET state = 'superseded', superseded_at = now()"
            " WHERE owner = {owner} AND name = {name} AND state = 'published' AND id <> {id}",
            owner=literal(owner),
            name=literal(name),
            id=credential,
        ),
        compose(
            "UPDATE polaris.credentials SET state = 'published' WHERE id = {id} AND state = 'issued'",
            id=credential,
        ),
    )


def record(owner: str, installation: UUID, epoch: int, own: OwnLogin) -> Sql:
    """Return the statement that writes down a login of the operator itself, which has no Secret."""
    return compose(
        "INSERT INTO polaris.credentials (installation_id, owner, name, epoch, group_role, source, state,"
        " username, lease_id, secret_namespace, secret_name, issued_at, expires_at)"
        " VALUES ({installation}, {owner}, 'operator', {epoch}, {group}, 'vault', 'published',"
        " {username}, {lease}, '', '', now(), {expires})",
        installation=literal(str(installation)),
        owner=literal(owner),
        epoch=epoch,
        group=literal(OPERATOR_ROLE),
        username=literal(own.username),
        lease=literal(own.lease_id),
        expires=literal(own.expires_at.isoformat()),
    )


def revoked(credential: int) -> tuple[Sql, ...]:
    """Return the statements that close a row, and forget rows closed long ago."""
    return (
        compose(
            "UPDATE polaris.credentials SET state = 'revoked', revoked_at = now() WHERE id = {id}",
            id=credential,
        ),
        compose(
            "DELETE FROM polaris.credentials old USING polaris.credentials this"
            " WHERE this.id = {id} AND old.owner = this.owner AND old.name = this.name"
            " AND old.state = 'revoked' AND old.epoch < this.epoch"
            " AND old.revoked_at < now() - interval '{days} days'",
            id=credential,
            days=_KEEP_DAYS,
        ),
    )
