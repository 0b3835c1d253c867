"""A crash in or after each effect of a workflow: the end is that of a run in which nothing happened.

What is compared is all that there is: objects and their status without times, catalogs, grants, rows,
Secrets, logins, the ledger, live leases and Vault's roles, of the object that is worked on and of one beside
it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from parts.vault import Administrator
from polaris_cli.up.postgres import LocalPostgres
from scenes.folder import MAIN
from scenes.killed import Effects, Killed, counted
from soak import SOAKING, times
from sweep.stage import BYSTANDER, SUBJECT, Stage, StandsStill, differences, stage

pytestmark = [pytest.mark.postgres, pytest.mark.soak]

LANG = {"name": "lang", "type": "keyword"}
YEAR = {"name": "year", "type": "integer"}
REPORTING = {"name": "reporting", "secretName": "subject-reporting"}
AUDIT = {"name": "audit", "secretName": "subject-audit"}
SEEDS = range(times(1, 3))


class Workflow:
    """What is asked of the operator, by a seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)  # noqa: S311  the same each time
        self.spec: dict[str, Any] = {
            "embedding": {"model": "e5", "dimension": 8, "metric": self.random.choice(["cosine", "l2"])},
            "attributes": self.random.choice([[LANG], [LANG, YEAR]]),
            "access": [REPORTING],
        }
        self.rows = self.random.choice([20, 40])

    @contextmanager
    def begun(self, on: Stage) -> Iterator[None]:
        """Everything as it is before; and afterwards, for the next run."""
        raise NotImplementedError

    def ask(self, on: Stage) -> None:
        """Change what is wanted."""
        raise NotImplementedError

    def then(self, on: Stage) -> None:
        """Change what is wanted once more, when that has come true; as often as one likes."""

    def ready(self, on: Stage) -> None:
        """Have an index with documents, and one beside it."""
        on.database()
        on.index(BYSTANDER, attributes=[LANG], deletionPolicy="Delete")
        on.index(**self.spec)
        on.stand()
        for key in (BYSTANDER, SUBJECT):
            on.fill(key, [f"d{number}" for number in range(self.rows)])
        on.settle()


class Create(Workflow):
    """A database and an index, from nothing."""

    @contextmanager
    def begun(self, on: Stage) -> Iterator[None]:  # noqa: ARG002
        yield

    def ask(self, on: Stage) -> None:
        on.database()
        on.index(**self.spec)


class Change(Workflow):
    """An edit: in place, to an index beside it, or to another generation."""

    @contextmanager
    def begun(self, on: Stage) -> Iterator[None]:
        self.ready(on)
        yield

    def ask(self, on: Stage) -> None:
        edits: list[dict[str, Any]] = [
            {"embedding": {"model": "other", "dimension": 4}, "access": [AUDIT]},
            {"embedding": {"model": "e5", "dimension": 8, "metric": "ip"}, "attributes": [YEAR]},
            {"embedding": {"model": "e5", "dimension": 8, "type": "vector"}, "index": {"m": 8}},
        ]
        on.index(**{**self.spec, **edits[self.seed % len(edits)]})


class Rotate(Workflow):
    """Every login is due at once: the operator's own, those of service and worker, and a reader's."""

    @contextmanager
    def begun(self, on: Stage) -> Iterator[None]:
        self.ready(on)
        yield

    def ask(self, on: Stage) -> None:
        on.scene.age_own_login(timedelta(hours=13))
        on.grow_old(["query", "worker", "reporting"][: 1 + self.random.randrange(3)])


class Delete(Workflow):
    """An index, and then the database."""

    @contextmanager
    def begun(self, on: Stage) -> Iterator[None]:
        policy: list[dict[str, Any]] = [
            {"deletionPolicy": "Delete", "undeleteSeconds": 0},
            {"deletionPolicy": "Delete"},
            {},
        ]
        self.spec |= policy[self.seed % len(policy)]
        self.ready(on)
        yield

    def ask(self, on: Stage) -> None:
        on.remove(SUBJECT)
        on.remove(BYSTANDER)
        # What is put aside waits for its end, and for somebody who leads to the database.
        if self.spec.get("deletionPolicy") != "Delete" or "undeleteSeconds" in self.spec:
            on.remove(MAIN)

    def then(self, on: Stage) -> None:
        on.remove(MAIN)


WORKFLOWS: tuple[type[Workflow], ...] = (Create, Change, Rotate, Delete)


@dataclass(frozen=True)
class Played:
    """One run."""

    effects: Effects
    killed: str
    picture: dict[str, Any]


def play(
    postgres: LocalPostgres,
    administrator: Administrator,
    kind: type[Workflow],
    seed: int,
    number: int | None,
    *,
    before: bool = False,
) -> Played:
    """Play a workflow, killed at an effect; return how it ends."""
    workflow, killed = kind(seed), ""
    with stage(postgres, administrator) as on, workflow.begun(on):
        workflow.ask(on)
        with counted(Effects(number, before=before)) as effects:
            try:
                on.settle()
                workflow.then(on)
                on.settle()
            except Killed as error:
                killed = str(error)
        if killed:
            on.die(effects)
            on.settle()
            workflow.then(on)
            on.settle()
        return Played(effects, killed, on.picture())


def points(effects: Sequence[str]) -> Iterator[tuple[int, bool]]:
    """Where a run is killed: after each effect and in each transaction; briefly, at two far apart.

    Before anything else would be after the effect that came first.
    """
    every = [
        (number, before)
        for number, what in enumerate(effects, start=1)
        for before in ((True, False) if what == "commit" or number == 1 else (False,))
    ]
    yield from every if SOAKING else (every[len(every) // 4], every[len(every) * 3 // 4])


@pytest.mark.timeout(7200 if SOAKING else 300)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", WORKFLOWS)
def test_killed_at_any_effect_it_ends_as_if_nothing_had_happened(
    postgres: LocalPostgres, vault_administrator: Administrator, kind: type[Workflow], seed: int
) -> None:
    calm = play(postgres, vault_administrator, kind, seed, None)
    wrong, reached = [], 0
    for number, before in points(calm.effects.done):
        try:
            found = play(postgres, vault_administrator, kind, seed, number, before=before)
        except StandsStill as error:
            wrong.append(f"killed at effect {number}, {before=}: {error}")
            continue
        reached += bool(found.killed)
        if differs := list(differences(calm.picture, found.picture)):
            wrong.append(f"killed {found.killed}, effect {number}: {differs}")
    print(f"{kind.__name__}, seed {seed}: {len(calm.effects.done)} effects, killed {reached} times")
    assert not wrong, "\n".join(wrong)
    assert reached
