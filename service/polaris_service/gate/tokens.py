"""Callers by a file of hashed tokens, for life without a cluster. The file is followed.

::

    tokens:
    - name: reporting
      sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08   # of the token
      verbs: [query]                   # query, documents:get, documents:create, documents:delete,
      indexes: ["default/*"]           # documents (all three), plan, *; namespace/name, * in each

A token is random and long, so a plain SHA-256 cannot be turned back; the file may be read by people
who may not know the tokens.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from polaris.errors import InvalidInput, Unauthenticated, Unavailable
from polaris.telemetry import logger
from polaris_service.gate.access import Access, Caller

_log = logger(__name__)

_LOOK_SECONDS = 1.0
_VERBS = ("*", "query", "documents", "documents:get", "documents:create", "documents:delete", "plan")
_PATTERN = re.compile(r"^[a-z0-9.*-]+/[a-z0-9.*-]+$")


class Token(BaseModel):
    """One entry of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, StringConstraints(min_length=1, max_length=253)]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    verbs: Annotated[tuple[str, ...], Field(min_length=1)]
    indexes: Annotated[tuple[str, ...], Field(min_length=1)]

    def allows(self, access: Access, namespace: str, name: str) -> bool:
        """Return whether it does; an empty namespace or name stands for all."""
        words = {"*", access.subresource, f"{access.subresource}:{access.verb}"}
        return not words.isdisjoint(self.verbs) and any(
            _matches(pattern, namespace, name) for pattern in self.indexes
        )


def _matches(pattern: str, namespace: str, name: str) -> bool:
    of_namespace, _, of_name = pattern.partition("/")
    return all(
        part == "*" if not value else fnmatchcase(value, part)
        for part, value in ((of_namespace, namespace), (of_name, name))
    )


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: tuple[Token, ...] = ()


def parse_tokens(text: str) -> dict[str, Token]:
    """Return the tokens of a file by their hash; raise InvalidInput that names what is wrong."""
    try:
        content = yaml.safe_load(text)
        entries = _File.model_validate({} if content is None else content).tokens
    except yaml.YAMLError as error:
        raise InvalidInput(f"the file of tokens is not YAML: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        pointer = "".join(f"/{part}" for part in first["loc"])
        at = f", {pointer}" if pointer else ""
        raise InvalidInput(f"the file of tokens{at}: {first['msg']}", pointer) from None
    for number, entry in enumerate(entries):
        for verb in entry.verbs:
            if verb not in _VERBS:
                raise InvalidInput(
                    f"the file of tokens, /tokens/{number}/verbs: {verb!r} is none of {', '.join(_VERBS)}"
                )
        for pattern in entry.indexes:
            if not _PATTERN.match(pattern):
                raise InvalidInput(
                    f"the file of tokens, /tokens/{number}/indexes: {pattern!r} is not namespace/name"
                )
    return {entry.sha256: entry for entry in entries}


class TokensPolicy:
    """Knows the callers of a file, at most a second behind it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tokens: dict[str, Token] | None = None
        self._seen: tuple[int, int, int] | None = None
        self._looked = float("-inf")

    async def start(self) -> None:
        """Read the file; a missing or wrong one is told in the log and at each request."""
        await self._look()

    async def stop(self) -> None:
        """Nothing to close."""

    async def who(self, token: str | None) -> Caller:
        """Return the caller whose token hashes to an entry."""
        if token is None:
            raise Unauthenticated(
                "send a token of this service's file of tokens: Authorization: Bearer TOKEN"
            )
        entry = (await self._present()).get(hashlib.sha256(token.encode()).hexdigest())
        if entry is None:
            raise Unauthenticated("this token is not in the service's file of tokens")
        return Caller(entry.name, uid=entry.sha256)

    async def may(self, caller: Caller, access: Access, namespace: str, name: str) -> bool:
        """Return whether the entry that the caller came by allows it."""
        entry = (await self._present()).get(caller.uid)
        return entry is not None and entry.allows(access, namespace, name)

    async def _present(self) -> dict[str, Token]:
        if time.monotonic() - self._looked >= _LOOK_SECONDS:
            await self._look()
        if self._tokens is None:
            raise Unavailable("the service's file of tokens is not there, or is wrong", retry_after=2.0)
        return self._tokens

    async def _look(self) -> None:
        """Read the file where it changed.

        A wrong one leaves what was valid before in force; with a missing one, nobody's token is: who
        removes the file locks everybody out.
        """
        self._looked = time.monotonic()
        try:
            read = await asyncio.to_thread(_read, self._path, self._seen)
            if read is not None:
                self._seen, text = read
                self._tokens = parse_tokens(text)
        except FileNotFoundError:
            if self._tokens is not None:
                _log.error("file of tokens is gone: no token is accepted", path=str(self._path))
            self._tokens = self._seen = None
        except (OSError, UnicodeDecodeError) as error:
            _log.error("file of tokens not read", path=str(self._path), why=str(error))
        except InvalidInput as error:
            _log.error("file of tokens is wrong", path=str(self._path), why=str(error))


def _read(path: Path, seen: tuple[int, int, int] | None) -> tuple[tuple[int, int, int], str] | None:
    stat = path.stat()
    now = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
    return None if now == seen else (now, path.read_text(encoding="utf-8"))
