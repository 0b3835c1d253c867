"""What there is of one PolarisIndex, as `observe.index` found it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from polaris import names
from polaris.status import Reason
from polaris_operator.world.credentials import CredentialsWorld

BEHIND_LIMIT = 1000
"""Where the count of what waits ends."""

IndexState = Literal["active", "released", "deleting"]
GenerationState = Literal["serving", "loading", "building"]


@dataclass(frozen=True)
class Claim:
    """What an object says about whose index it wants: its own name, or one that it adopts."""

    namespace: str
    name: str
    adopt: str | None = None
    """Value of the annotation `polaris.dev/adopt`: `catalog id/number`."""


@dataclass(frozen=True)
class IndexRow:
    """A row of `polaris.indexes`."""

    number: int
    installation: UUID
    installation_name: str
    namespace: str
    name: str
    uid: str
    state: IndexState
    deletion_policy: str
    schema: str
    spec: Mapping[str, Any] | None
    object_generation: int
    serving: int | None
    updated_at: datetime
    last_generation: int = 1
    """The highest number that a generation ever had."""
    released_at: datetime | None = None
    drop_after: datetime | None = None
    """Where a released index goes: when."""
    logins: bool = False
    """Whether some login of it was not revoked yet; looked at for indexes whose objects are gone."""

    @property
    def tombstone(self) -> bool:
        """Whether it was deleted, and is kept for a while in case that was a mistake."""
        return self.state == "released" and self.drop_after is not None


@dataclass(frozen=True)
class Verified:
    """What the gates before a switch looked at, and found. Counts are of documents, unless said."""

    settled: int
    """The sequence up to which all documents were applied or given up; later ones were not looked at."""
    documents: int
    """That are there."""
    missing: int
    """Of which the serving generation shows a version that this one does not show (nor a newer one)."""
    surplus: int
    """That were deleted, and of which this one still has chunks."""
    chunks: int
    """Rows of the table of chunks."""
    claimed: int
    """Chunks that there should be, by what was written down of each document."""
    sampled: int
    """Chunks whose hash was compared with their span of the stored text."""
    differing: int
    """Of these, those that differ."""

    @property
    def faults(self) -> tuple[str, ...]:
        """What is not as it must be, in sentences; none where the generation may serve."""
        found = []
        if self.missing or self.surplus:
            found.append(
                f"of {self.documents} documents {self.missing} are missing, and {self.surplus} deleted ones"
                " are left"
            )
        if self.chunks != self.claimed:
            found.append(f"there are {self.chunks} chunks, and {self.claimed} were written down")
        if self.differing:
            found.append(f"{self.differing} of {self.sampled} chunks are not of the stored text")
        return tuple(found)


@dataclass(frozen=True)
class ClassRecall:
    """Recall of one way to ask, as a measurement found it. Shares are from 0 to 1."""

    of: str
    """`rows`: by the index's own vectors; `questions`: by what was asked; else a class of filters
    (`polaris_operator.plan.filters.CLASSES`)."""
    vectors: int
    """That were looked for."""
    recall: float
    low: float
    """With `high`: the interval that holds the true recall nineteen times of twenty."""
    high: float
    attribute: str | None = None
    """Of a class of filters: what was compared."""
    share: float | None = None
    """Of a class of filters: the share of the rows that was left."""


@dataclass(frozen=True)
class RecallDetails:
    """What a measurement of recall came to, beyond the one number."""

    took_seconds: float
    writes: int
    """Rows written or deleted in the table until then, by PostgreSQL's count."""
    questions: int
    """Vectors of questions that were kept then."""
    classes: tuple[ClassRecall, ...]


@dataclass(frozen=True)
class GenerationRow:
    """A row of `polaris.generations`."""

    number: int
    state: GenerationState
    embedding: Mapping[str, Any]
    chunking: Mapping[str, Any]
    index: Mapping[str, Any] | None
    """What its vector index is made by; None: as the index's spec says."""
    vector_index: str | None
    ef_search: int
    recall: float | None
    recall_rows: int | None
    recall_at: datetime | None
    load_requested_at: datetime | None
    valid_since: datetime | None
    superseded_at: datetime | None = None
    """When another took its place; None: it serves, or never did."""
    verified_at: datetime | None = None
    verified: Verified | None = None
    behind: int = 0
    """Documents that wait to be applied, counted up to BEHIND_LIMIT; looked at while it is loading, and
    where it does not serve."""
    failing: int = 0
    """Of these, documents that have failed, and are tried again."""
    recall_details: RecallDetails | None = None
    questions: int = 0
    """Vectors of questions that are kept."""


@dataclass(frozen=True)
class Model:
    """A model that some running worker embeds with."""

    provider: str
    model: str
    revision: str
    dimension: int

    def __str__(self) -> str:
        return f"{self.provider}/{self.model} revision {self.revision} with dimension {self.dimension}"


@dataclass(frozen=True)
class Role:
    """A role, and who is in it."""

    login: bool
    members: frozenset[str] = frozenset()
    """Who inherits its rights and may set it."""
    admins: frozenset[str] = frozenset()
    """Who may make others members."""
    connects: bool = True
    """Whether it may connect to this database."""


Grants = frozenset[tuple[str, str]]
"""(grantee, privilege) pairs that were granted explicitly."""


@dataclass(frozen=True)
class Schema:
    """A schema."""

    owner: str
    grants: Grants = frozenset()


@dataclass(frozen=True)
class Column:
    """A column, its type as `format_type` prints it without the type's schema."""

    name: str
    type: str
    not_null: bool
    storage: str = ""
    """p(lain), e(xternal), m(ain) or (e)x(tended)."""


@dataclass(frozen=True)
class Relation:
    """A table or a view."""

    kind: str
    """pg_class.relkind: r, p, v, m or f."""
    owner: str
    columns: tuple[Column, ...] = ()
    primary_key: tuple[str, ...] = ()
    grants: Grants = frozenset()
    rows: int = 0
    """As PostgreSQL estimates them."""
    bytes: int = 0
    rewritten: bool = False
    """Whether it has another file than it was made with: of a TRUNCATE, or of a VACUUM FULL."""
    live: int = 0
    """Rows, and"""
    dead: int = 0
    """rows that were deleted and not vacuumed yet, as PostgreSQL has counted them since it was started."""
    changed: int = 0
    """Rows written or deleted since it was analyzed last."""
    writes: int = 0
    """Rows written or deleted since PostgreSQL began to count."""
    vacuumed_at: datetime | None = None
    """When it was vacuumed last, by anybody."""
    depends_on: frozenset[str] = frozenset()
    """Relations that a view reads."""


@dataclass(frozen=True)
class IndexSeen:
    """An index as `pg_index` shows it."""

    table: str
    valid: bool
    """Valid, ready and live: queries use it."""
    method: str
    opclass: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    expression: str | None = None
    keys: int = 1
    """Number of its columns and expressions, included ones too."""
    collation: str = ""
    """Of the first of them; "": its type has none, or it is the database's."""
    outdated: bool = False
    """Whether it is on another expression than filters use; looked at in a pass over its object only."""
    unique: bool = False
    partial: bool = False
    constraint: bool = False
    """Whether it belongs to a constraint."""
    bytes: int = 0
    """Of an HNSW index."""


@dataclass(frozen=True)
class Build:
    """A live CREATE INDEX."""

    pid: int
    table: str
    index: str | None
    """None for a plain build: nobody else sees its name before it ends."""
    locks: frozenset[int]
    """Keys of the session advisory locks that its backend holds."""
    phase: str
    done: int
    total: int
    """Blocks, or tuples where no blocks are counted; 0 where PostgreSQL does not say."""
    started_at: datetime | None
    blocked_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class BuildFailure:
    """How a build that this process started last ended, where it failed."""

    message: str
    at: datetime
    count: int
    """In a row."""
    late: bool = False
    """Whether it only did not get its lock in time: others work with the table."""
    reason: Reason = Reason.BUILD_FAILED


@dataclass(frozen=True)
class IndexWorld:
    """All that is known of one index, at one moment."""

    catalog: str
    """The catalog's id."""
    database: str
    installation: UUID
    """Ours."""
    now: datetime
    """By the database's clock, as all times in the catalog are."""
    next_number: int
    """What a new index would be numbered."""
    row: IndexRow | None = None
    named: IndexRow | None = None
    """What the annotation `polaris.dev/adopt` names."""
    issuer: bool = False
    """Whether the role is there that hands memberships on to Vault's login."""
    public_connects: bool = True
    """Whether any role may connect to this database."""
    generations: tuple[GenerationRow, ...] = ()
    models: frozenset[Model] = frozenset()
    query_url: str | None = None
    roles: Mapping[str, Role] = field(default_factory=dict)
    schema: Schema | None = None
    relations: Mapping[str, Relation] = field(default_factory=dict)
    indexes: Mapping[str, IndexSeen] = field(default_factory=dict)
    builds: tuple[Build, ...] = ()
    locks: frozenset[int] = frozenset()
    """Keys of all advisory locks that are held in this database."""
    waits: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """By the key of such a lock: who its holder waits for, where it waits."""
    clock: int | None = None
    """The last sequence given out; None where the clock has no row."""
    emptied: frozenset[str] = frozenset()
    """Tables that lack rows of which others, or the clock, show that they must be there."""
    forbidden: tuple[str, ...] = ()
    """Where a setting keeps the planner of queries from using indexes: statements that take it away."""
    canary: str | None = None
    """Index that the planner chooses for a nearest-neighbour query; None: none, or not asked."""
    old_transaction: str | None = None
    """Whose has been open for longest in this database, where that is long."""
    measuring: frozenset[int] = frozenset()
    """Generations whose recall this process measures, or will before long."""
    failures: Mapping[str, BuildFailure] = field(default_factory=dict)
    """By the name of the index."""

    @property
    def subject(self) -> IndexRow | None:
        """The row that this is about: the object's own, or else the one that it would adopt."""
        return self.row or self.named

    @property
    def number(self) -> int:
        """The index's number, or the one that it would get."""
        return self.subject.number if self.subject else self.next_number

    @property
    def generation(self) -> GenerationRow | None:
        """The generation that serves, or that is to serve first."""
        serving = self.subject.serving if self.subject else None
        if serving is not None:
            return self.generation_of(serving)
        return min(self.generations, key=lambda generation: generation.number, default=None)

    def generation_of(self, number: int) -> GenerationRow | None:
        """The generation of this number."""
        return next((one for one in self.generations if one.number == number), None)

    @property
    def others(self) -> tuple[GenerationRow, ...]:
        """The generations that do not serve: previous ones, and candidates."""
        return tuple(one for one in self.generations if one is not self.generation)


def build_lock(schema: str, index: str) -> int:
    """Return the key of the session advisory lock that marks a live build of this index."""
    return names.advisory_key("build", schema, index)


@dataclass(frozen=True)
class IndexAndLogins:
    """All that decides about one object: its index, and the logins of its readers."""

    index: IndexWorld
    credentials: CredentialsWorld | None = None
    """None while the index is not the object's own, or has no role for readers yet."""
