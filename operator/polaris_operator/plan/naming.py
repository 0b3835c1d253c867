"""The names of everything that one index has, and the guard that it still is the object's own."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from polaris import names
from polaris.sql import Sql, compose, identifier, literal
from polaris_operator.objects import Resource
from polaris_operator.world.index import IndexWorld


@dataclass(frozen=True)
class Naming:
    """Names of one index in one database."""

    catalog: str
    number: int
    schema: str

    @property
    def owner(self) -> str:
        """Role that owns schema, tables and views."""
        return names.index_role(self.catalog, self.number, "owner")

    @property
    def reader(self) -> str:
        """Role of those who read the views."""
        return names.index_role(self.catalog, self.number, "reader")

    @property
    def writer(self) -> str:
        """Role of those who write documents: the service and its workers."""
        return names.index_role(self.catalog, self.number, "writer")

    def relation(self, name: str) -> Sql:
        """Return the quoted name of something in the index's schema."""
        return identifier(self.schema, name)


def naming(resource: Resource, world: IndexWorld) -> Naming:
    """Return the names of the index that this object has, or is going to have."""
    schema = (
        world.subject.schema if world.subject else names.index_schema(world.next_number, resource.key.name)
    )
    return Naming(world.catalog, world.number, schema)


def ledger_owner(number: int) -> str:
    """Return what the ledger calls the owner of the logins of this index."""
    return f"index/{number}"


def as_owner(name: Naming) -> tuple[Sql, Sql]:
    """Return what to say before and after statements whose results the owner role shall own."""
    return (
        compose("SET LOCAL ROLE {owner}", owner=identifier(name.owner)),
        compose("SET LOCAL ROLE {operator}", operator=identifier(names.OPERATOR_ROLE)),
    )


def owned(number: int, installation: UUID, uid: str) -> Sql:
    """Return the guard that the index is this object's; nobody takes it while the transaction lasts."""
    return compose(
        "EXISTS (SELECT FROM polaris.indexes WHERE id = {number} AND installation_id = {installation}"
        " AND uid = {uid} AND state = 'active' FOR SHARE)",
        number=number,
        installation=literal(str(installation)),
        uid=literal(uid),
    )


def tell(channel: str, number: int) -> Sql:
    """Return the statement that wakes who listens, when the transaction commits."""
    return compose(
        "SELECT pg_notify({channel}, {payload})", channel=literal(channel), payload=literal(str(number))
    )
