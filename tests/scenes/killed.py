"""Ends a pass before or after one of its effects, as kill -9 does: by the doors that it goes through.

Nothing of this is in the operator: its doors are wrapped where they touch the world. An effect is a
transaction that was committed, a statement outside of one, a build that was begun, a question to Vault that
changes something there, and a file of the folder that was written, put in place or removed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from polaris_operator import folder
from polaris_operator.postgres import Postgres
from polaris_operator.vault import TRIAL_SECONDS, Trial, Vault

_VAULT = ("_issue", "_on_trial", "write_role", "revoke", "renew", "delete_role")
_FILES = ("_write", "_swap", "_remove")


class Killed(BaseException):
    """The process ended here; nothing in the code catches it."""


class Effects:
    """What a pass does to the world, in order; before or after the one of this number it is killed."""

    def __init__(self, number: int | None = None, *, before: bool = False) -> None:
        self.number, self.before = number, before
        self.begun: list[str] = []
        self.done: list[str] = []
        self.trials: list[Trial] = []
        """Tokens that nobody has renewed: they end by themselves, soon after who asked for them."""
        self.quiet = 0
        """More than 0 while what is done has no effect that would matter."""

    def tried(self, found: Trial) -> None:
        """A token was made, or renewed: for as long as a trial lasts, or for the whole life of a login."""
        short = found.ends_at <= datetime.now(UTC) + timedelta(seconds=TRIAL_SECONDS)
        self.trials = [trial for trial in self.trials if trial.client is not found.client]
        self.trials += [found] if short else []

    @contextlib.contextmanager
    def effect(self, what: str) -> Iterator[None]:
        """One effect is under way."""
        if self.quiet:
            yield
            return
        self.begun.append(what)
        number = len(self.begun)
        if self.before and number == self.number:
            raise Killed(f"before {what}")
        yield
        self._over(what, number)

    def _over(self, what: str, number: int) -> None:
        self.done.append(what)
        if not self.before and number == self.number:
            raise Killed(f"after {what}")

    @contextlib.contextmanager
    def commit(self, what: str, transaction: contextlib.AbstractContextManager[Any]) -> Iterator[Any]:
        """Commit at the end, or be killed in the transaction, or after it."""
        with transaction as connection:
            yield connection
            if self.quiet:
                return
            self.begun.append(what)
            number = len(self.begun)
            if self.before and number == self.number:
                raise Killed(f"before {what}")
        self._over(what, number)


@contextlib.contextmanager
def counted(effects: Effects) -> Iterator[Effects]:
    """Count what goes through the doors of Vault, PostgreSQL and the folder of objects and Secrets."""
    with pytest.MonkeyPatch.context() as patch:
        for name in _VAULT:
            patch.setattr(Vault, name, _calling(effects, getattr(Vault, name), f"vault {name}"))
        for name in _FILES:
            patch.setattr(folder, name, _calling(effects, getattr(folder, name), f"file {name}"))
        for name in ("alone", "start_build"):
            patch.setattr(Postgres, name, _calling(effects, getattr(Postgres, name), name))
        for name in ("hold", "beat"):
            patch.setattr(Postgres, name, _quietly(effects, getattr(Postgres, name)))
        patch.setattr(Postgres, "_transaction", _committing(effects, Postgres._transaction))
        yield effects


def _calling(effects: Effects, real: Callable[..., Any], what: str) -> Callable[..., Any]:
    def called(*arguments: Any, **options: Any) -> Any:
        with effects.effect(what):
            result = real(*arguments, **options)
            # Before the end of the effect: who is killed after it has done all of it.
            if isinstance(result, Trial):
                effects.tried(result)
        return result

    return called


def _quietly(effects: Effects, real: Callable[..., Any]) -> Callable[..., Any]:
    def called(*arguments: Any, **options: Any) -> Any:
        effects.quiet += 1
        try:
            return real(*arguments, **options)
        finally:
            effects.quiet -= 1

    return called


def _committing(effects: Effects, real: Callable[..., Any]) -> Callable[..., Any]:
    def transaction(door: Postgres, mode: str, *arguments: Any, **options: Any) -> Any:
        made = real(door, mode, *arguments, **options)
        return effects.commit("commit", made) if mode.startswith("READ WRITE") else made

    return transaction
