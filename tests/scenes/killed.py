"""Ends a pass after one of its effects, as kill -9 does: by the doors that it goes through."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from polaris_operator.folder import FolderObjects
from polaris_operator.postgres import Postgres
from polaris_operator.vault import Vault


class Killed(BaseException):
    """The process ended here; nothing in the code catches it."""


class Effects:
    """What a pass did to the world, in order; after the one of this number it is killed."""

    def __init__(self, kill_after: int | None = None) -> None:
        self.kill_after = kill_after
        self.done: list[str] = []

    def note(self, what: str) -> None:
        """An effect is there."""
        self.done.append(what)
        if len(self.done) == self.kill_after:
            raise Killed(what)


@contextlib.contextmanager
def counted(effects: Effects) -> Iterator[Effects]:
    """Count what goes through the doors of Vault, PostgreSQL and Secrets."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_issue", "write_role", "revoke", "renew", "delete_role"):
            patch.setattr(Vault, name, _calling(effects, getattr(Vault, name), f"vault {name}"))
        for name in ("write_secret", "delete_secret"):
            patch.setattr(FolderObjects, name, _calling(effects, getattr(FolderObjects, name), name))
        patch.setattr(Postgres, "write", _committing(effects, Postgres.write))
        yield effects


def _calling(effects: Effects, real: Callable[..., Any], what: str) -> Callable[..., Any]:
    def called(*arguments: Any, **options: Any) -> Any:
        result = real(*arguments, **options)
        effects.note(what)
        return result

    return called


def _committing(effects: Effects, real: Callable[..., Any]) -> Callable[..., Any]:
    @contextlib.contextmanager
    def writing(*arguments: Any, **options: Any) -> Iterator[Any]:
        with real(*arguments, **options) as connection:
            yield connection
        effects.note("commit")

    return writing
