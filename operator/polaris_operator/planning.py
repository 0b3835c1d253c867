"""`POST /v1/plan`: what would be done about a PolarisIndex, for pipelines that can't reach the database.

A pipeline sends a manifest and is answered what applying it would do, by the operator that would do it.
Nothing is changed, neither in PostgreSQL nor in the cluster. Only the replica that leads has doors to the
databases; the others say so.

This is an edge: errors become problem documents (RFC 9457) here.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import IO, Any, NamedTuple, Protocol, TypeAlias

import yaml
from prometheus_client import Counter

from polaris import errors as e
from polaris.status import Reason
from polaris.telemetry import logger
from polaris_operator import manifests, preview
from polaris_operator.callers import Gate
from polaris_operator.conditions.shared import blocked_by
from polaris_operator.databases import Databases
from polaris_operator.doors import Doors
from polaris_operator.manifests import Manifest
from polaris_operator.objects import Key, Objects, Resource, database_of
from polaris_operator.steps import Blocked, Plan

log = logger(__name__)

PATH = "/v1/plan"
MAX_BODY_BYTES = 2**20
# A plan reads catalogs for some milliseconds. More at a time help no pipeline, and are a load on databases.
PLANS_AT_A_TIME = 4
_TURN_SECONDS = 5.0
# Where nobody knows better: long enough for a restart of a part, short enough for a person.
_RETRY_AFTER = 2.0
_PIECE = 2**16
# A caller that sends a byte now and then holds a thread no longer than that.
_BODY_SECONDS = 30.0
_JSON = frozenset({"application/json", ""})
_YAML = frozenset({"application/yaml", "application/x-yaml", "text/yaml"})
_LOOPBACK = r"(?i:localhost|127(?:\.[0-9]{1,3}){3}|\[::1\])(?::[0-9]{1,5})?"

_ASKED = Counter("polaris_operator_plans_total", "Answers of POST /v1/plan.", ["status"])

Environment: TypeAlias = Mapping[str, Any]


class Core(Protocol):
    """What plans are made with: an operator that leads."""

    @property
    def objects(self) -> Objects:
        """The objects that it reconciles."""
        ...

    @property
    def databases(self) -> Databases:
        """The databases that it is logged in to."""
        ...


class Malformed(e.InvalidInput):
    """The body is neither JSON nor YAML."""


class UnsupportedMediaType(e.InvalidInput):
    """The body says that it is something else."""


class NoLength(e.InvalidInput):
    """The body does not say how long it is."""


class WrongMethod(e.InvalidInput):
    """The route is asked by POST only."""


class NotLeading(e.Unavailable):
    """This replica stands by; another one knows."""


class Waits(e.Conflict):
    """The database does not let an index be looked at now."""

    def __init__(self, blocked: Blocked) -> None:
        super().__init__(blocked.message)
        self.code = _words(blocked.reason)


class NoDatabase(e.NotFound):
    """There is no such PolarisDatabase."""

    code = "database-not-found"


class _Kind(NamedTuple):
    status: int
    code: str
    title: str


_KINDS: dict[type[e.PolarisError], _Kind] = {
    e.PolarisError: _Kind(500, "internal", "Internal error"),
    e.InvalidInput: _Kind(422, "invalid-input", "Invalid input"),
    e.InvalidManifest: _Kind(422, "invalid-manifest", "Invalid manifest"),
    e.TooLarge: _Kind(413, "too-large", "Too large"),
    Malformed: _Kind(400, "malformed", "Malformed request"),
    UnsupportedMediaType: _Kind(415, "unsupported-media-type", "Unsupported media type"),
    NoLength: _Kind(411, "length-required", "Length required"),
    WrongMethod: _Kind(405, "method-not-allowed", "Method not allowed"),
    e.NotFound: _Kind(404, "not-found", "Not found"),
    e.Conflict: _Kind(409, "conflict", "Conflict"),
    e.Unauthenticated: _Kind(401, "unauthenticated", "Unauthenticated"),
    e.Forbidden: _Kind(403, "forbidden", "Forbidden"),
    e.Unavailable: _Kind(503, "unavailable", "Unavailable"),
    e.DatabaseUnavailable: _Kind(503, "database-unavailable", "Database unavailable"),
    e.VaultUnavailable: _Kind(503, "vault-unavailable", "Vault unavailable"),
    e.ClusterUnavailable: _Kind(503, "cluster-unavailable", "Kubernetes API unavailable"),
    e.Overloaded: _Kind(503, "overloaded", "Overloaded"),
    NotLeading: _Kind(503, "not-leading", "Not leading"),
    e.DeadlineExceeded: _Kind(504, "deadline-exceeded", "Deadline exceeded"),
}
# What asking again may change, or the caller can; all else stands in the plan, as it would in the status.
_TOLD = (e.Unavailable, e.DeadlineExceeded, e.InvalidInput)


class Planning:
    """The route, as a WSGI application."""

    def __init__(self, core: Callable[[], Core | None], gate: Gate, *, loopback: bool = False) -> None:
        """`core` returns the operator while it leads; with `loopback` only this machine's own may ask."""
        self._core = core
        self._gate = gate
        self._loopback = loopback
        self._turns = threading.BoundedSemaphore(PLANS_AT_A_TIME)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer one request."""
        status, headers, body = self._answer(environ)
        _ASKED.labels(str(status)).inc()
        if status != HTTPStatus.OK:
            log.info("no plan shown", status=status, code=body["code"])
        content = json.dumps(body, ensure_ascii=False).encode()
        kind = "application/json" if status == HTTPStatus.OK else "application/problem+json"
        start_response(
            f"{status} {HTTPStatus(status).phrase}",
            [
                ("Content-Type", kind),
                ("Content-Length", str(len(content))),
                ("Cache-Control", "no-store"),
                *headers.items(),
            ],
        )
        return [content]

    def _answer(self, environ: Environment) -> tuple[int, dict[str, str], Any]:
        try:
            return 200, {}, self._plan(environ)
        except e.PolarisError as error:
            return _problem(error)
        except Exception as error:
            # Its text may be anything's; the log is for those who may read it.
            log.exception("unforeseen error", path=PATH)
            kind = type(error).__name__
            return _problem(
                e.PolarisError(f"the operator failed as nobody foresaw ({kind}); its log says how")
            )

    def _plan(self, environ: Environment) -> dict[str, Any]:
        raw = _body(environ)
        if environ["REQUEST_METHOD"] != "POST":
            raise WrongMethod(f"{PATH} is asked by POST, with a manifest as the body")
        if self._loopback:
            _from_here(environ)
        # Before anybody is asked who this is: a replica that stands by puts no load on the API server.
        self._leading()
        if not self._turns.acquire(timeout=_TURN_SECONDS):
            raise e.Overloaded(f"{PLANS_AT_A_TIME} plans are being made already", _RETRY_AFTER)
        try:
            return self._in_turn(environ, raw)
        finally:
            self._turns.release()

    def _in_turn(self, environ: Environment, raw: bytes) -> dict[str, Any]:
        caller = self._gate.who(_token(environ))
        manifest = parse(raw, environ.get("CONTENT_TYPE") or "")
        key = manifest.key
        if not self._gate.may(caller, key):
            raise e.Forbidden(
                f"{caller.name} needs get on polarisindexes/plan {key.name} in namespace {key.namespace}"
            )
        core = self._leading()
        try:
            planned = plan(manifest, core, datetime.now(UTC))
        finally:
            # Where it stopped to lead meanwhile, another one may have done all of it; doors are closed.
            self._leading()
        log.info("plan shown", object=str(key), caller=caller.name, hash=planned.hash)
        return preview.document(planned)

    def _leading(self) -> Core:
        core = self._core()
        if core is None:
            raise NotLeading("this replica of the operator does not lead: ask again, another one answers", 1)
        return core


def plan(manifest: Manifest, core: Core, now: datetime) -> preview.Planned:
    """Return what would be done about the index of a manifest, by whoever leads; only reads.

    Raises InvalidManifest, NoDatabase, Waits, Conflict for an object that is being deleted, and Unavailable.
    """
    key = manifest.key
    if not core.objects.watches(key.namespace):
        raise e.NotFound(f"this operator does not watch namespace {key.namespace}")
    resource = preview.proposed(manifest, core.objects)
    doors = _doors(core.databases, resource)
    try:
        return preview.look(resource, doors, now)
    except _TOLD:
        raise
    except e.PolarisError as error:
        return preview.Planned(key, Plan(blocked=blocked_by(error)))


def _doors(databases: Databases, resource: Resource) -> Doors:
    key: Key = database_of(resource)
    found = databases.find(key, resource.key.namespace)
    if found is None:
        raise e.Unavailable(f"the operator has not looked at {key} yet", _RETRY_AFTER)
    if not isinstance(found, Blocked):
        return found
    if found.reason == Reason.DATABASE_NOT_FOUND:
        raise NoDatabase(found.message)
    if found.reason == Reason.DATABASE_UNAVAILABLE:
        raise e.DatabaseUnavailable(found.message)
    raise Waits(found)


# --- the request ---------------------------------------------------------------------------------


def parse(raw: bytes, media_type: str) -> Manifest:
    """Return the manifest of a body.

    Raises Malformed, UnsupportedMediaType, and InvalidManifest with a pointer to the field.
    """
    kind = media_type.partition(";")[0].strip().lower()
    if kind not in _JSON | _YAML:
        raise UnsupportedMediaType(f"a manifest is application/json or application/yaml, not {kind[:100]}")
    try:
        text = raw.decode()
        found = json.loads(text, parse_constant=_no_number) if kind in _JSON else yaml.load(text, _Plain)  # noqa: S506  a SafeLoader
    except RecursionError:
        raise Malformed("the body is nested too deeply") from None
    except (ValueError, yaml.YAMLError) as error:
        raise Malformed(f"the body is no {'JSON' if kind in _JSON else 'YAML'}: {_line(error)}") from None
    try:
        return manifests.only(found, "the body")
    except RecursionError:
        raise Malformed("the body is nested too deeply") from None


class _Plain(yaml.SafeLoader):
    """YAML without aliases: a few bytes of them are a document of any size."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not taken")
        return super().compose_node(parent, index)


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _line(error: Exception) -> str:
    """Return what is wrong and where, without the text itself: it may be a Secret that went astray."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem} in line {error.problem_mark.line + 1}"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} in line {error.lineno}"
    return type(error).__name__ if isinstance(error, UnicodeError) else str(error)[:200]


def _body(environ: Environment) -> bytes:
    """Return the body; one that is too long is read and forgotten, so that the caller gets to the answer."""
    if environ.get("HTTP_TRANSFER_ENCODING"):
        raise NoLength("send the body with its Content-Length, not in chunks")
    text = environ.get("CONTENT_LENGTH") or "0"
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise Malformed("Content-Length is no number")
    length, source = int(text), environ["wsgi.input"]
    if length > MAX_BODY_BYTES:
        _forget(source, min(length, 16 * MAX_BODY_BYTES))
        raise e.TooLarge(f"the body has {length} bytes; at most {MAX_BODY_BYTES} are taken")
    end, raw = time.monotonic() + _BODY_SECONDS, bytearray()
    while len(raw) < length and (piece := source.read1(min(length - len(raw), _PIECE))):
        raw += piece
        if time.monotonic() > end:
            raise e.DeadlineExceeded(f"the body was not here within {_BODY_SECONDS:g} s")
    if len(raw) < length:
        raise Malformed(f"the body ended after {len(raw)} of {length} bytes")
    return bytes(raw)


def _forget(source: IO[bytes], left: int) -> None:
    while left > 0 and (piece := source.read(min(left, _PIECE))):
        left -= len(piece)


def _token(environ: Environment) -> str | None:
    scheme, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def _from_here(environ: Environment) -> None:
    """Raise Forbidden for what a page of a stranger, in a browser of this machine, may have sent."""
    host, origin = environ.get("HTTP_HOST", ""), environ.get("HTTP_ORIGIN")
    foreign = origin is not None and not re.fullmatch(rf"https?://{_LOOPBACK}", origin)
    if foreign or not re.fullmatch(_LOOPBACK, host):
        raise e.Forbidden(
            "an operator over a folder plans only for those who ask it as localhost, 127.0.0.1 or [::1]"
        )


# --- the answer ----------------------------------------------------------------------------------


def _problem(error: e.PolarisError) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Return the problem that an error is: status, headers and document."""
    row = next(_KINDS[base] for base in type(error).__mro__ if base in _KINDS)
    code = getattr(error, "code", row.code)
    document: dict[str, Any] = {
        "type": f"urn:polaris:problem:{code}",
        "title": row.title,
        "status": row.status,
        "detail": str(error),
        "code": code,
    }
    if isinstance(error, e.InvalidInput):
        document["errors"] = [{"pointer": error.pointer, "detail": str(error)}]
    return row.status, _headers(error, row.status), document


def _headers(error: e.PolarisError, status: int) -> dict[str, str]:
    if status == HTTPStatus.UNAUTHORIZED:
        return {"WWW-Authenticate": "Bearer"}
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        return {"Allow": "POST"}
    if status != HTTPStatus.SERVICE_UNAVAILABLE:
        return {}
    seconds = getattr(error, "retry_after", None)
    return {"Retry-After": str(max(1, math.ceil(_RETRY_AFTER if seconds is None else seconds)))}


def _words(reason: Reason) -> str:
    """DatabaseNotReady as problems write it: database-not-ready."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", reason.value).lower()
