"""What is to be made true, of which generation: the spec, or the one before until its successor is fit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from polaris import layout, names
from polaris.changes import Change, Effect, changes
from polaris.errors import InvalidManifest
from polaris.spec import PolarisIndexSpec, check_transition, parse_spec
from polaris.sql import Sql
from polaris.status import Reason
from polaris_operator.objects import Resource
from polaris_operator.plan.naming import Naming
from polaris_operator.steps import Blocked, Execute, Step
from polaris_operator.world.index import GenerationRow, IndexWorld

# What tells the operator how to behave holds at once, also while the rest of a change waits.
_CONTROLS = (
    "build",
    "drift",
    "deletion_policy",
    "deletion_deadline_seconds",
    "undelete_seconds",
    "suspend",
    "access",
    "change",
)


@dataclass(frozen=True)
class Aim:
    """One generation of an index, what is known of both, and what they shall be."""

    name: Naming
    world: IndexWorld
    spec: PolarisIndexSpec
    """What is made true now."""
    guard: Sql
    """That the index still is the object's own."""
    made: PolarisIndexSpec | None
    """What was made true last; None: nothing yet."""
    number: int
    """The generation's."""

    @property
    def generation(self) -> GenerationRow | None:
        """What the catalog says of the generation; None: it does not know of it yet."""
        return self.world.generation_of(self.number)

    @property
    def serves(self) -> bool:
        """Whether it is the generation that serves, or is to serve first."""
        serving = self.world.subject.serving if self.world.subject else None
        return serving in (None, self.number)

    @cached_property
    def chunks(self) -> layout.Table:
        """The generation's table of chunks."""
        return layout.chunks(self.number, self.spec.embedding)

    @cached_property
    def applied(self) -> layout.Table:
        """The generation's table of what it has applied."""
        return layout.applied(self.number)

    @property
    def empty(self) -> bool:
        """Whether the table of chunks has no page yet, so that an index on it costs nothing."""
        relation = self.world.relations.get(names.chunks_table(self.number))
        return relation is None or relation.bytes == 0

    def step(self, reason: Reason, sentence: str, *statements: Sql, destructive: bool = False) -> Step:
        """Return a step of one transaction, guarded."""
        return Step(reason, sentence, Execute(statements, (self.guard,)), destructive)


@dataclass(frozen=True)
class Decision:
    """What stands between the spec and the one that was made true."""

    made: PolarisIndexSpec | None
    """What was made true last."""
    spec: PolarisIndexSpec
    """What can be made true now."""
    blocked: Blocked | None = None
    """Why that is not the object's spec."""
    needed: tuple[Change, ...] = ()
    """Changes that need a new generation."""


def decide(resource: Resource, spec: PolarisIndexSpec, world: IndexWorld) -> Decision:
    """Return what was made true last, and what can be made true now."""
    if world.subject is None or world.subject.spec is None:
        return Decision(None, spec)
    try:
        made = parse_spec(PolarisIndexSpec, world.subject.spec)
    except InvalidManifest as error:
        message = f"the catalog holds a spec that another version of POLARIS wrote: {error}"
        return Decision(None, spec, Blocked(Reason.CATALOG_TOO_NEW, message, stalled=True))
    kept = controls_aside(made, spec)
    # Another object may name the same database otherwise; only an edit of this one is refused.
    if world.row is not None and world.row.uid == resource.uid:
        try:
            check_transition(made, spec)
        except InvalidManifest as error:
            return Decision(made, kept, Blocked(Reason.INVALID_SPEC, str(error), stalled=True))
    needed = tuple(change for change in changes(made, spec) if change.effect == Effect.NEW_GENERATION)
    return Decision(made, kept if needed else spec, needed=needed)


def controls_aside(made: PolarisIndexSpec, spec: PolarisIndexSpec) -> PolarisIndexSpec:
    """Return what was made true last, under what the spec says now of how the operator shall behave."""
    return made.model_copy(update={field: getattr(spec, field) for field in _CONTROLS})
