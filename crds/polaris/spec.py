"""The resources as people write them: `PolarisDatabase` and `PolarisIndex`, `polaris.dev/v1alpha1`.

These models are the one truth. `polaris.crd` renders the CustomResourceDefinitions from them, so a
limit stands here once. What a single field cannot say stands in a `Rule` (CEL for the API server, a
function for life without one); what a change may not do, in a `Transition`.

A value enters an enum together with the code that honours it, never before.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel

from polaris.errors import InvalidManifest


@dataclass(frozen=True)
class Rule:
    """What must hold within one object: for the API server in CEL, here as a function."""

    cel: str
    message: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class Transition:
    """What must hold between an object and its next version: CEL (`oldSelf`), and a function."""

    cel: str
    message: str
    holds: Callable[[Any, Any], bool]


class Part(BaseModel):
    """Base of every part of a resource: camelCase outside, closed, immutable."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    rules: ClassVar[tuple[Rule, ...]] = ()
    transitions: ClassVar[tuple[Transition, ...]] = ()

    @model_validator(mode="after")
    def _keeps_its_rules(self) -> Self:
        for rule in self.rules:
            if not rule.holds(self):
                raise ValueError(rule.message)
        return self


# Kubernetes' own rule for most names (RFC 1123 label) and for Secrets (subdomain).
LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
SUBDOMAIN = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"

Label = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=LABEL)]
Subdomain = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=SUBDOMAIN)]
SecretKey = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
Memory = Annotated[str, StringConstraints(max_length=16, pattern=r"^[1-9][0-9]*(Mi|Gi)$")]


class SecretKeyRef(Part):
    """One key of a Secret in the object's own namespace."""

    name: Subdomain
    """Name of the Secret."""
    key: SecretKey
    """Key in the Secret."""


class SecretRef(Part):
    """A Secret in the object's own namespace."""

    name: Subdomain
    """Name of the Secret."""


# --- PolarisDatabase ---------------------------------------------------------------------------


class TlsMode(StrEnum):
    """libpq's `sslmode`, less the modes that only look safe."""

    VERIFY_FULL = "verify-full"
    REQUIRE = "require"
    DISABLE = "disable"


class Tls(Part):
    """How connections to PostgreSQL are protected. Less than `verify-full` must be written out."""

    mode: TlsMode = TlsMode.VERIFY_FULL
    """verify-full checks certificate and host name; require encrypts only; disable does nothing."""
    ca_secret_ref: SecretKeyRef | None = None
    """The authority that signed the server's certificate. Without it, the system's authorities."""


class KubernetesAuth(Part):
    """Vault's `kubernetes` method, with a token of a ServiceAccount of this namespace."""

    mount: Annotated[str, StringConstraints(min_length=1, max_length=253)] = "kubernetes"
    """Where the method is mounted."""
    role: Annotated[str, StringConstraints(min_length=1, max_length=253)]
    """The role to log in as."""
    audience: Annotated[str, StringConstraints(min_length=1, max_length=253)] = "vault"
    """Audience of the token that is asked for (TokenRequest)."""
    service_account_name: Subdomain
    """A ServiceAccount of the object's own namespace; nobody borrows the operator's identity."""


class TokenAuth(Part):
    """A Vault token, kept in a Secret."""

    secret_ref: SecretKeyRef
    """The Secret and key that hold the token."""


class AppRoleAuth(Part):
    """Vault's `approle` method."""

    mount: Annotated[str, StringConstraints(min_length=1, max_length=253)] = "approle"
    """Where the method is mounted."""
    role_id: Annotated[str, StringConstraints(min_length=1, max_length=253)]
    """The role's id."""
    secret_ref: SecretKeyRef
    """The Secret and key that hold the secret id."""


def _exactly_one(*values: object) -> bool:
    return sum(value is not None for value in values) == 1


class VaultAuth(Part):
    """How the operator logs in to Vault: exactly one method."""

    kubernetes: KubernetesAuth | None = None
    """With a ServiceAccount's token."""
    token: TokenAuth | None = None
    """With a token from a Secret."""
    app_role: AppRoleAuth | None = None
    """With a role id and a secret id."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "[has(self.kubernetes), has(self.token), has(self.appRole)].filter(x, x).size() == 1",
            "exactly one of kubernetes, token and appRole must be set",
            lambda a: _exactly_one(a.kubernetes, a.token, a.app_role),
        ),
    )


class Vault(Part):
    """Vault or OpenBao with a database secrets engine."""

    address: Annotated[str, StringConstraints(max_length=2048, pattern=r"^https?://[^/\s]+/?$")]
    """Base address, such as https://openbao.vault.svc:8200."""
    ca_secret_ref: SecretKeyRef | None = None
    """The authority that signed Vault's certificate. Without it, the system's authorities."""
    auth: VaultAuth
    """How the operator logs in."""
    mount: Annotated[str, StringConstraints(min_length=1, max_length=253)] = "database"
    """Where the database secrets engine is mounted."""
    connection: Annotated[str, StringConstraints(min_length=1, max_length=253)] = "polaris"
    """The engine's connection (`config/NAME`) that leads to this database."""
    role: Annotated[str, StringConstraints(min_length=1, max_length=253)] = "polaris-operator"
    """The engine's role that issues the operator's own login."""


class Credentials(Part):
    """The operator's own login: exactly one source."""

    vault: Vault | None = None
    """Leased from Vault's or OpenBao's database secrets engine."""
    secret_ref: SecretRef | None = None
    """A Secret with keys `username` and `password`; the operator then issues the other logins."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.vault) != has(self.secretRef)",
            "exactly one of vault and secretRef must be set",
            lambda c: _exactly_one(c.vault, c.secret_ref),
        ),
    )


class LoginSecret(Part):
    """A Secret that POLARIS makes for a login and keeps fresh."""

    secret_name: Subdomain
    """Name of the Secret, in the object's namespace."""


class Logins(Part):
    """The logins of the query service and of its workers."""

    query: LoginSecret = LoginSecret(secret_name="polaris-query")
    """For the query service."""
    worker: LoginSecret = LoginSecret(secret_name="polaris-worker")
    """For the workers."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.query.secretName != self.worker.secretName",
            "query and worker must have Secrets of their own",
            lambda x: x.query.secret_name != x.worker.secret_name,
        ),
    )


class Migrations(StrEnum):
    """Who brings the catalog up to date."""

    AUTO = "Auto"
    MANUAL = "Manual"


class PolarisDatabaseSpec(Part):
    """One PostgreSQL database with pgvector."""

    host: Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=r"^[^\s/@]+$")]
    """Host name or address."""
    port: Annotated[int, Field(ge=1, le=65535)] = 5432
    """TCP port."""
    database: Annotated[str, StringConstraints(min_length=1, max_length=63)]
    """Name of the database."""
    tls: Tls = Tls()
    """How connections are protected."""
    credentials: Credentials
    """The operator's own login."""
    logins: Logins = Logins()
    """Logins made here for service and workers."""
    migrations: Migrations = Migrations.AUTO
    """Auto: the operator brings the catalog up to date. Manual: `polaris migrate` does."""
    allowed_namespaces: Annotated[
        list[
            Annotated[
                str,
                StringConstraints(max_length=63, pattern=r"^(\*|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$"),
            ]
        ],
        Field(max_length=256),
    ] = []
    """Namespaces whose indexes may use it; empty: its own only; ["*"]: all."""
    deletion_deadline_seconds: Annotated[int, Field(ge=1, le=86400)] = 600
    """How long the object, once deleted and with no index in it, waits for its logins to be revoked."""

    transitions: ClassVar[tuple[Transition, ...]] = (
        Transition(
            "self.database == oldSelf.database",
            "database cannot be changed: make another PolarisDatabase",
            lambda old, new: old.database == new.database,
        ),
    )


# --- PolarisIndex ------------------------------------------------------------------------------


class DatabaseRef(Part):
    """The PolarisDatabase that holds the index."""

    name: Subdomain
    """Name of the PolarisDatabase."""
    namespace: Label | None = None
    """Its namespace; without it, the index's own."""


class Metric(StrEnum):
    """How two vectors are compared."""

    COSINE = "cosine"
    L2 = "l2"
    IP = "ip"


class VectorType(StrEnum):
    """pgvector's type of the embedding column: 2 or 4 bytes a dimension."""

    HALFVEC = "halfvec"
    VECTOR = "vector"


class Embedding(Part):
    """What turns text into vectors, and how vectors are kept."""

    provider: Label = "default"
    """One of the providers that the service's settings name."""
    model: Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[!-~]+$")]
    """The model, by the provider's name for it."""
    revision: Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[!-~]+$")] = "1"
    """The model's revision; another one means other vectors."""
    dimension: Annotated[int, Field(ge=1, le=4000)]
    """Number of dimensions: at most 4,000 as halfvec and 2,000 as vector (limits of HNSW)."""
    metric: Metric = Metric.COSINE
    """How vectors are compared."""
    type: VectorType = VectorType.HALFVEC
    """halfvec halves the size at equal recall."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.type == 'halfvec' || self.dimension <= 2000",
            "a vector has at most 2000 dimensions: use type halfvec, which has up to 4000",
            lambda e: e.type == VectorType.HALFVEC or e.dimension <= 2000,
        ),
    )


class Chunking(Part):
    """How documents are cut, at the borders of headings and sentences."""

    max_tokens: Annotated[int, Field(ge=16, le=8192)] = 400
    """Most tokens of a chunk. What a model takes beyond its own limit is lost to it."""
    overlap_tokens: Annotated[int, Field(ge=0, le=4096)] = 40
    """Tokens that a chunk repeats of the one before."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.overlapTokens * 2 <= self.maxTokens",
            "overlapTokens must be at most half of maxTokens",
            lambda c: c.overlap_tokens * 2 <= c.max_tokens,
        ),
    )


class IndexType(StrEnum):
    """How nearest vectors are found."""

    HNSW = "hnsw"
    EXACT = "exact"


class VectorIndex(Part):
    """The index of the vectors."""

    type: IndexType = IndexType.HNSW
    """hnsw: approximate and fast. exact: every row is compared."""
    m: Annotated[int, Field(ge=2, le=100)] = 16
    """Links of a node of the graph."""
    ef_construction: Annotated[int, Field(ge=4, le=1000)] = 64
    """Candidates while building; at least twice m."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.efConstruction >= 2 * self.m",
            "efConstruction must be at least twice m",
            lambda i: i.ef_construction >= 2 * i.m,
        ),
    )


class SearchMode(StrEnum):
    """What a query gets that does not say."""

    DENSE = "dense"


class Search(Part):
    """What queries get."""

    target_recall_percent: Annotated[int, Field(ge=50, le=100)] = 98
    """Share of the exact top 10 that the index must find; a promise that is measured."""
    mode: SearchMode | None = None
    """What a query gets that does not say; without it, the best that this version has."""


class AttributeType(StrEnum):
    """Type of a filterable attribute."""

    KEYWORD = "keyword"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"
    DATETIME = "datetime"


class Attribute(Part):
    """An attribute of documents that filters may use."""

    name: Annotated[str, StringConstraints(max_length=40, pattern=r"^[a-z][a-z0-9_]*$")]
    """Key in the documents' attributes."""
    type: AttributeType
    """How it is compared."""


class TenancyMode(StrEnum):
    """How callers are kept apart within one index."""

    NONE = "none"


class Tenancy(Part):
    """Tenants within one index."""

    mode: TenancyMode = TenancyMode.NONE
    """none: everybody who may query the index sees all of it."""


class Build(Part):
    """What a build of the vector index may use."""

    maintenance_work_mem: Memory = "256Mi"
    """PostgreSQL's maintenance_work_mem during the build; a graph that fits is built much faster."""
    parallel_workers: Annotated[int, Field(ge=0, le=32)] = 1
    """Parallel workers besides the leader; each needs /dev/shm."""
    deadline_seconds: Annotated[int, Field(ge=60, le=2592000)] = 86400
    """A build that takes longer is ended."""


class Approval(StrEnum):
    """Which plans wait until somebody has agreed to them."""

    AUTO = "Auto"
    """None."""
    DESTRUCTIVE = "Destructive"
    """Those that remove what can't be made again from the stored documents."""
    ALL = "All"
    """Every change of what the spec asks of the database; repairs of drift do not wait."""


class Change(Part):
    """How a change of what is stored comes about."""

    approval: Approval = Approval.DESTRUCTIVE
    """Which plans wait for `approvedPlan`."""
    approved_plan: Annotated[str, StringConstraints(max_length=71, pattern=r"^(sha256:[0-9a-f]{64})?$")] = ""
    """The plan that may be carried out: its hash, as `polaris plan` and `status.plan` show it."""

    retain_previous_seconds: Annotated[int, Field(ge=0, le=2592000)] = 3600
    """How long what served before is kept level: until then, putting the old spec back is a mere switch."""


class Drift(StrEnum):
    """What happens when the database no longer is what the spec says."""

    REPAIR = "Repair"
    REPORT = "Report"


class DeletionPolicy(StrEnum):
    """What becomes of documents and vectors when the object is deleted."""

    RETAIN = "Retain"
    DELETE = "Delete"


class Access(Part):
    """A login for others, who read with SQL through the stable views."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=40, pattern=LABEL)]
    """Name of the login among those of this index."""
    secret_name: Subdomain
    """The Secret that is made for it, in the object's namespace."""
    overlap_seconds: Annotated[int, Field(ge=0, le=86400)] = 300
    """How long the old login stays valid after a new one was published."""


class Backend(StrEnum):
    """Where vectors are kept."""

    PGVECTOR = "pgvector"


class PolarisIndexSpec(Part):
    """One retrieval index: what it is made of, and what is promised of it."""

    database_ref: DatabaseRef
    """The database that holds it."""
    embedding: Embedding
    """Model, dimension and type of its vectors."""
    chunking: Chunking = Chunking()
    """How documents are cut."""
    index: VectorIndex = VectorIndex()
    """The index of the vectors."""
    search: Search = Search()
    """What queries get."""
    attributes: Annotated[
        list[Attribute],
        Field(
            max_length=32,
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
        ),
    ] = []
    """Typed attributes of documents that filters may use."""
    tenancy: Tenancy = Tenancy()
    """Tenants within the index."""
    build: Build = Build()
    """What a build of the index may use."""
    change: Change = Change()
    """How another generation takes the place of the one that serves."""
    drift: Drift = Drift.REPAIR
    """Whether what no longer agrees with the spec is repaired or only reported."""
    deletion_policy: DeletionPolicy = DeletionPolicy.RETAIN
    """Whether documents and vectors stay when the object is deleted."""
    deletion_deadline_seconds: Annotated[int, Field(ge=1, le=86400)] = 600
    """With Delete: how long the object waits for its data to be gone."""
    undelete_seconds: Annotated[int, Field(ge=0, le=2592000)] = 259200
    """With Delete: how long the data is kept aside, out of everybody's reach, so that a mistake can be
    undone; three days, as a weekend is longer than one. 0: it is gone before the object is."""
    suspend: bool = False
    """true: the database is not changed, only logins are rotated; when the object is deleted, data stays."""
    access: Annotated[
        list[Access],
        Field(
            max_length=32,
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
        ),
    ] = []
    """Logins for others who read with SQL."""
    backend: Backend = Backend.PGVECTOR
    """Where vectors are kept."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.access.all(a, self.access.exists_one(b, a.secretName == b.secretName))",
            "each entry of access must have a Secret of its own",
            lambda s: len({a.secret_name for a in s.access}) == len(s.access),
        ),
    )
    transitions: ClassVar[tuple[Transition, ...]] = (
        Transition(
            "self.databaseRef == oldSelf.databaseRef",
            "databaseRef cannot be changed: make another index and load it",
            lambda old, new: old.database_ref == new.database_ref,
        ),
        Transition(
            "self.backend == oldSelf.backend",
            "backend cannot be changed",
            lambda old, new: old.backend == new.backend,
        ),
    )

    @field_validator("attributes", "access")
    @classmethod
    def _names_are_unique(cls, items: list[Any]) -> list[Any]:
        # The API server enforces this through x-kubernetes-list-map-keys.
        names = [item.name for item in items]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name!r} stands there twice")
        return items


# --- whole objects -----------------------------------------------------------------------------

S = TypeVar("S", bound=Part)
Kind = Literal["PolarisDatabase", "PolarisIndex"]
SPECS: dict[str, type[PolarisDatabaseSpec | PolarisIndexSpec]] = {
    "PolarisDatabase": PolarisDatabaseSpec,
    "PolarisIndex": PolarisIndexSpec,
}
MAX_NAME = {"PolarisDatabase": 63, "PolarisIndex": 48}


def name_rule(kind: str) -> Rule:
    """Return the rule about `metadata.name`, which stands at the root of the object."""
    limit = MAX_NAME[kind]
    return Rule(
        f"self.metadata.name.size() <= {limit}",
        f"metadata.name must have at most {limit} characters",
        lambda name: len(name) <= limit,
    )


def parse_spec(model: type[S], spec: Any) -> S:
    """Return the spec as a model; raise InvalidManifest that names the field, `/spec/…`.

    As strict as the API server: "384" is no number, and yes is no boolean.
    """
    try:
        return model.model_validate_json(json.dumps(spec), strict=True)
    except TypeError as error:
        # YAML has values that JSON has not, such as dates.
        raise InvalidManifest(f"/spec: {error}", "/spec") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        pointer = "".join(f"/{part}" for part in ("spec", *first["loc"]))
        raise InvalidManifest(f"{pointer}: {first['msg']}", pointer) from None


def check_transition(old: Part, new: Part) -> None:
    """Raise InvalidManifest where a change is one that is always refused."""
    for transition in new.transitions:
        if not transition.holds(old, new):
            raise InvalidManifest(f"/spec: {transition.message}", "/spec")
