"""Histories of an index's object: each state of it that the API server would have shown, from real passes.

The operator's own reconciler works on a real PostgreSQL, where things are edited, broken, taken away and
deleted at random. What is right to say at each state is told by rules that know nothing of conditions:
by what was done to the index, and by what PostgreSQL's catalogs hold of it at that very moment, compared
with a fresh index of the same spec.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from operator_index.place import MAIN, Place, index_manifest, place_of
from operator_index.test_deletion import let_in, shut_out
from operator_index.test_passes import DRIFT, damage
from operator_index.worlds import embedding
from polaris import names
from polaris_cli.up.postgres import LocalPostgres
from polaris_operator.folder import FolderObjects
from polaris_operator.objects import Key, Resource


class Verdict(Enum):
    """What a tool has to make of a state: what kstatus says, and Argo CD."""

    HEALTHY = ("Current", "Healthy")
    PROGRESSING = ("InProgress", "Progressing")
    STUCK = ("Failed", "Degraded")
    SUSPENDED = ("Failed", "Suspended")
    GOING = ("Terminating", "Progressing")


_MANNERS = ("drift", "suspend", "deletionPolicy", "undeleteSeconds")


@dataclass(frozen=True)
class State:
    """The object as the API server has it, and what each form of the health checks has to make of it."""

    seen: dict[str, Any]
    ready: Verdict
    serving: Verdict
    after: str
    """What was done last."""
    late: bool
    """Whether it became so during the pass: a look from before a build ended may say that it is under way."""
    differs: str
    """What the catalogs do not hold as they should."""

    def verdicts(self, form: str) -> tuple[Verdict, ...]:
        """What may be made of it."""
        wanted = self.ready if form == "ready" else self.serving
        return (wanted, Verdict.PROGRESSING) if self.late and wanted == Verdict.HEALTHY else (wanted,)


@dataclass
class Story:
    """What happens to one index, and all states of its object."""

    key: Key
    spec: dict[str, Any]
    after: str = ""
    trouble: Verdict | None = None
    """What is to be said whatever the catalogs hold; None: they decide."""
    agreed: bool = False
    """Whether the catalogs agreed with the spec when the pass began."""
    states: list[State] = field(default_factory=list)


class Stage(Place):
    """A place where every state of the index of the story is kept."""

    story: Story | None = None

    def folder(self) -> FolderObjects:
        """The objects of the manifests, each state of which is told."""
        return _Told(self)

    def told(self, resource: Resource) -> None:
        """Take down a state, and what is to be made of it at this moment."""
        story = self.story
        if story is None or resource.key != story.key:
            return
        ready, serving = self._verdicts(story, resource)
        late, differs = not story.agreed, self.differs(story)
        story.states.append(State(_seen(resource), ready, serving, story.after, late, differs))

    def _reconcile(self, key: Key) -> None:
        if self.story is not None and key == self.story.key:
            self.story.agreed = not self.differs(self.story)
        super()._reconcile(key)

    def _verdicts(self, story: Story, resource: Resource) -> tuple[Verdict, Verdict]:
        if resource.deleted_at is not None:
            return Verdict.GOING, Verdict.GOING
        if resource.status.get("observedGeneration") != resource.generation:
            return Verdict.PROGRESSING, Verdict.PROGRESSING
        if story.trouble is not None:
            return story.trouble, story.trouble
        return _healthy(not self.differs(story)), _healthy(self._can_be_asked(resource))

    def differs(self, story: Story) -> str:
        """What the catalogs do not hold as they hold it for a fresh index of this spec; empty: nothing."""
        known = self.sql("SELECT 1 FROM polaris.indexes WHERE name = %s AND state = 'active'", story.key.name)
        if not known:
            return "it is not in the catalog"
        found, wanted = _held(self.fingerprint(story.key)), self.wanted[_digest(story.spec)]
        # An index that was replaced goes after the one that replaced it serves: nothing waits for that.
        found["indexes"] = [one for one in found["indexes"] if one in wanted["indexes"]]
        return "; ".join(
            f"{name}: {found[name]}, not {wanted[name]}" for name in found if found[name] != wanted[name]
        )

    def _can_be_asked(self, resource: Resource) -> bool:
        """Whether there is a generation that serves, and every table that a query of it reads."""
        rows = self.sql(
            "SELECT schema_name, serving FROM polaris.indexes WHERE uid = %s AND serving IS NOT NULL",
            resource.uid,
        )
        return bool(rows) and all(
            self.one("SELECT to_regclass(%s) IS NOT NULL", f"{rows[0][0]}.{table}")
            for table in (
                names.DOCUMENTS,
                names.VERSIONS,
                names.chunks_table(rows[0][1]),
                names.applied_table(rows[0][1]),
            )
        )

    @property
    def wanted(self) -> dict[str, Any]:
        """By spec, what the catalogs hold of a fresh index of it."""
        found: dict[str, Any] = self.__dict__.setdefault("_wanted", {})
        return found

    def study(self, spec: dict[str, Any]) -> None:
        """Learn what the catalogs hold of a fresh index of a spec."""
        if _digest(spec) in self.wanted:
            return
        key = self.put(index_manifest(f"model-{len(self.wanted)}", **spec))
        self.go_until(key, "Ready")
        self.wanted[_digest(spec)] = _held(self.fingerprint(key))
        self.remove(key)
        self.go()


class _Told(FolderObjects):
    def __init__(self, stage: Stage) -> None:
        super().__init__(stage.manifests, stage.data)
        self._stage = stage

    def _keep(self, key: Key, kept: Any) -> Resource:
        resource = super()._keep(key, kept)
        self._stage.told(resource)
        return resource


def _healthy(holds: bool) -> Verdict:
    return Verdict.HEALTHY if holds else Verdict.PROGRESSING


def _held(found: dict[str, Any]) -> dict[str, Any]:
    """What the catalogs hold, but for how the operator is to go about it."""
    ((namespace, state, _, spec, serving),) = found["index"]
    asked = {name: value for name, value in json.loads(spec).items() if name not in _MANNERS}
    return {**found, "index": (namespace, state, asked, serving)}


def _digest(spec: dict[str, Any]) -> str:
    return names.digest({"spec": spec})


def _seen(resource: Resource) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "name": resource.key.name,
        "namespace": resource.key.namespace,
        "generation": resource.generation,
    }
    if resource.deleted_at is not None:
        metadata["deletionTimestamp"] = resource.deleted_at.strftime("%Y-%m-%dT%H:%M:%SZ")
    status = resource.status or {"observedGeneration": -1}  # the default of the CRD
    made = {
        "apiVersion": "polaris.dev/v1alpha1",
        "kind": "PolarisIndex",
        "metadata": metadata,
        "spec": {},
        "status": status,
    }
    copied: dict[str, Any] = json.loads(json.dumps(made))
    return copied


# --- what may happen

SPECS: tuple[dict[str, Any], ...] = (
    {},
    {"attributes": [{"name": "lang", "type": "keyword"}]},
    {"attributes": [{"name": "lang", "type": "keyword"}, {"name": "year", "type": "integer"}]},
    {"index": {"m": 4, "efConstruction": 16}},
    {"index": {"type": "exact"}},
    {"embedding": embedding(metric="l2")},
    {"search": {"targetRecallPercent": 90}},
)
# Those whose traces any index has, whatever its spec.
_DAMAGES = [kind for kind in DRIFT if "attribute" not in kind and "vector" not in kind]
_REPORTED = ("a view dropped", "the schema's grant", "the index of sequences")


def _put(stage: Stage, story: Story, after: str, **changes: Any) -> None:
    story.after = after
    stage.put(index_manifest(story.key.name, **story.spec, **changes))
    stage.objects.look()


def _settle(stage: Stage, story: Story) -> None:
    stage.go_until(story.key, "Ready")


def edited(stage: Stage, story: Story, draw: random.Random) -> None:
    """One edit or two, with or without a look in between."""
    for _ in range(draw.choice((1, 2))):
        story.spec = draw.choice(SPECS)
        _put(stage, story, f"edited: {story.spec}")
        if draw.random() < 0.5:
            stage.go(story.key)
    _settle(stage, story)


def damaged(stage: Stage, story: Story, draw: random.Random) -> None:
    """Something is broken, and repaired."""
    story.after = draw.choice(_DAMAGES)
    damage(stage, story.key, story.after)
    _settle(stage, story)


def reported(stage: Stage, story: Story, draw: random.Random) -> None:
    """Something is broken that is not to be repaired, until it is."""
    _put(stage, story, "drift: Report", drift="Report")
    _settle(stage, story)  # What an edit finds broken is repaired: so it is looked at first.
    story.trouble = Verdict.STUCK
    damage(stage, story.key, draw.choice(_REPORTED))
    stage.go(story.key)
    story.trouble = None
    _put(stage, story, "drift: Repair")
    _settle(stage, story)


def suspended(stage: Stage, story: Story, draw: random.Random) -> None:
    """Suspended while something is to be done."""
    story.trouble = Verdict.SUSPENDED
    damage(stage, story.key, draw.choice(_REPORTED))
    _put(stage, story, "suspended", suspend=True)
    stage.go(story.key)
    story.trouble = None
    _put(stage, story, "suspended no more")
    _settle(stage, story)


def away(stage: Stage, story: Story, draw: random.Random) -> None:
    """PostgreSQL lets nobody in for a while, and perhaps it is edited meanwhile."""
    story.trouble, story.after = Verdict.PROGRESSING, "PostgreSQL is away"
    shut_out(stage)
    if draw.random() < 0.5:
        story.spec = draw.choice(SPECS)
        _put(stage, story, "edited while PostgreSQL is away")
    stage.go(story.key)
    let_in(stage)
    story.trouble = None
    _settle(stage, story)


def restarted(stage: Stage, story: Story, draw: random.Random) -> None:
    """The operator is started anew, perhaps just after an edit."""
    if draw.random() < 0.5:
        story.spec = draw.choice(SPECS)
        _put(stage, story, "edited before a restart")
    stage.restart()
    _settle(stage, story)


def unknown(stage: Stage, story: Story, draw: random.Random) -> None:  # noqa: ARG001
    """A model is asked for that nobody embeds with; then the one of before again."""
    story.trouble = Verdict.STUCK
    kept, story.spec = story.spec, {}
    _put(stage, story, "a model that nobody has", embedding=embedding(model="unheard-of"))
    stage.go(story.key)
    story.trouble, story.spec = None, kept
    _put(stage, story, "the model of before")
    _settle(stage, story)


EVENTS: tuple[Callable[[Stage, Story, random.Random], None], ...] = (
    edited,
    edited,
    damaged,
    reported,
    suspended,
    away,
    restarted,
    unknown,
)


def history(stage: Stage, seed: int) -> Story:
    """Return what became of one index, from its manifest to its end."""
    draw = random.Random(seed)  # noqa: S311
    story = stage.story = Story(Key("PolarisIndex", "team", f"story-{seed}"), draw.choice(SPECS))
    if first := draw.random() < 0.2:  # Nobody embeds with anything yet.
        stage.sql("UPDATE polaris.models SET reported_at = now() - interval '2 days'")
        story.trouble = Verdict.STUCK
    _put(stage, story, "applied")
    if first:
        stage.go(story.key)
        stage.sql("UPDATE polaris.models SET reported_at = now() + interval '1 day'")
        story.trouble = None
    _settle(stage, story)
    if draw.random() < 0.7:
        stage.fill(story.key, draw.choice((5, 200)))
    for _ in range(draw.choice((1, 2, 3))):
        draw.choice(EVENTS)(stage, story, draw)
    _ended(stage, story, draw)
    return story


def _ended(stage: Stage, story: Story, draw: random.Random) -> None:
    if draw.random() < 0.3:  # What can't be made again is gone, and nobody can mend that but a person.
        story.trouble, story.after = Verdict.STUCK, "the documents are lost"
        stage.sql(f"DROP TABLE {stage.schema(story.key)}.stored_versions CASCADE")
        stage.go(story.key)
    if draw.random() < 0.6:
        _put(stage, story, "to be deleted", deletionPolicy="Delete", undeleteSeconds=0, suspend=False)
        stage.go(story.key)
    story.after = "deleted"
    stage.remove(story.key)
    stage.go(story.key)
    stage.go(story.key)
    assert stage.objects.get(story.key) is None
    stage.story = None


@contextmanager
def stage_in(server: LocalPostgres) -> Iterator[Stage]:
    """A place with a database that is ready, a worker, and the fresh indexes to compare with."""
    with place_of(Stage, server) as stage:
        stage.go(MAIN)
        stage.offer()
        for spec in SPECS:
            stage.study(spec)
        yield stage
