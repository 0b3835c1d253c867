"""Every error as an answer: an RFC 9457 problem document that also holds OpenAI's `error` object.

This is the edge where errors become HTTP. Code below raises `PolarisError`s; `install` makes an
application answer with problems, whoever raised: our own code, FastAPI, the router, or a bug.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple, NotRequired, TypeAlias, TypeVar

import orjson
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from polaris import errors as e
from polaris.telemetry import logger
from polaris_service.bodies import NotJson, WrongMediaType, escape

MEDIA_TYPE = "application/problem+json"
# RFC 9457 wants a URI that stays the same; nothing has to be found there.
_TYPE_PREFIX = "urn:polaris:problem:"
# Seconds. Where nobody knows better: long enough for a restart of a part, short enough for a person.
_RETRY_AFTER = 2.0

_log = logger(__name__)

Model = TypeVar("Model", bound=BaseModel)


class Fault(TypedDict):
    """One thing that is wrong with a request."""

    pointer: str
    """JSON pointer (RFC 6901) into the body; "" is all of it."""
    detail: str
    parameter: NotRequired[str]
    """Where it is not in the body: the query parameter, path parameter or header."""


class Kind(NamedTuple):
    """What all problems of one sort have in common."""

    status: int
    code: str
    title: str


class InvalidBody(e.InvalidInput):
    """A body with several faults, each with its own pointer."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        first = faults[0]
        super().__init__(f"{first['pointer'] or 'the body'}: {first['detail']}", first["pointer"])
        self.errors = list(faults)


Kinds: TypeAlias = Mapping[type[e.PolarisError], Kind]

KINDS: dict[type[e.PolarisError], Kind] = {
    e.PolarisError: Kind(500, "internal", "Internal error"),
    e.InvalidInput: Kind(422, "invalid-input", "Invalid input"),
    e.InvalidManifest: Kind(422, "invalid-manifest", "Invalid manifest"),
    e.TooLarge: Kind(413, "too-large", "Too large"),
    InvalidBody: Kind(422, "invalid-input", "Invalid input"),
    NotJson: Kind(400, "malformed", "Malformed request"),
    WrongMediaType: Kind(415, "unsupported-media-type", "Unsupported media type"),
    e.NotFound: Kind(404, "not-found", "Not found"),
    e.Gone: Kind(410, "gone", "Erased"),
    e.Conflict: Kind(409, "conflict", "Conflict"),
    e.NotOwner: Kind(409, "not-owner", "Owned by another"),
    e.PreconditionFailed: Kind(412, "precondition-failed", "Precondition failed"),
    e.Denied: Kind(403, "denied", "Denied"),
    e.Unauthenticated: Kind(401, "unauthenticated", "Unauthenticated"),
    e.Forbidden: Kind(403, "forbidden", "Forbidden"),
    e.Unavailable: Kind(503, "unavailable", "Unavailable"),
    e.DatabaseUnavailable: Kind(503, "database-unavailable", "Database unavailable"),
    e.VaultUnavailable: Kind(503, "vault-unavailable", "Vault unavailable"),
    e.ClusterUnavailable: Kind(503, "cluster-unavailable", "Kubernetes API unavailable"),
    e.EmbedderUnavailable: Kind(424, "embedder-unavailable", "Embedder unavailable"),
    e.GeneratorUnavailable: Kind(424, "generator-unavailable", "Generator unavailable"),
    e.Overloaded: Kind(503, "overloaded", "Overloaded"),
    e.Refused: Kind(424, "refused", "Refused by a dependency"),
    e.EmbedderRefused: Kind(424, "embedder-refused", "Refused by the embedder"),
    e.GeneratorRefused: Kind(424, "generator-refused", "Refused by the generator"),
    e.DatabaseRefused: Kind(503, "database-refused", "Refused by PostgreSQL"),
    e.VaultRefused: Kind(503, "vault-refused", "Refused by Vault"),
    e.Prerequisite: Kind(503, "prerequisite-missing", "Prerequisite missing"),
    e.Unsupported: Kind(503, "unsupported-version", "Unsupported version"),
    e.DeadlineExceeded: Kind(504, "deadline-exceeded", "Deadline exceeded"),
}
"""What each error is over HTTP. An error's own `code`, where it has one, wins over the one here."""

# What FastAPI and the router raise by themselves, by status; any other gets its phrase.
_ROUTER_CODES = {404: "no-such-route", 405: "method-not-allowed"}


def problem_response(  # noqa: PLR0913  (the members of a problem document)
    status: int,
    code: str,
    title: str,
    detail: str,
    *,
    errors: Sequence[Fault] | None = None,
    headers: Mapping[str, str] | None = None,
    members: Mapping[str, Any] | None = None,
) -> Response:
    """Return a problem as an `application/problem+json` response.

    `detail` is one sentence about this occurrence, safe to show; `members` are further members of the
    document (RFC 9457 §3.2).
    """
    return Response(
        orjson.dumps({**problem(status, code, title, detail, errors), **(members or {})}),
        status,
        headers,
        MEDIA_TYPE,
    )


def problem(
    status: int,
    code: str,
    title: str,
    detail: str,
    errors: Sequence[Fault] | None = None,
) -> dict[str, Any]:
    """Return a problem document; also what an error that comes amid a stream of events looks like."""
    document: dict[str, Any] = {
        "type": _TYPE_PREFIX + code,
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "error": {
            "message": detail,
            "type": _openai_type(status),
            "code": code,
            "param": _openai_param(errors),
        },
    }
    if errors:
        document["errors"] = list(errors)
    return document


def _openai_type(status: int) -> str:
    """Return the word by which OpenAI's clients tell errors apart."""
    known = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    return known.get(status, "invalid_request_error" if status < 500 else "server_error")


def _openai_param(errors: Sequence[Fault] | None) -> str | None:
    """Return the first parameter that is at fault, as OpenAI writes it: `input[3].text`."""
    if not errors:
        return None
    first = errors[0]
    if "parameter" in first:
        return first["parameter"]
    tokens = [token.replace("~1", "/").replace("~0", "~") for token in first["pointer"].split("/")[1:]]
    path = "".join(f"[{token}]" if token.isdecimal() else f".{token}" for token in tokens)
    return path.removeprefix(".") or None


def kind_of(error: e.PolarisError, kinds: Kinds = KINDS) -> Kind:
    """Return what an error is over HTTP: the row of its class or of the nearest base that has one."""
    row = next(kinds[base] for base in type(error).__mro__ if base in kinds)
    return row._replace(code=getattr(error, "code", row.code))


def from_error(error: e.PolarisError, kinds: Kinds = KINDS) -> Response:
    """Return the problem that an error is."""
    kind = kind_of(error, kinds)
    remedy = getattr(error, "remedy", "")
    return problem_response(
        *kind,
        detail=str(error),
        errors=_faults(error),
        headers=_headers(error, kind.status),
        members={"remedy": remedy} if remedy else None,
    )


def _faults(error: e.PolarisError) -> list[Fault] | None:
    if isinstance(error, InvalidBody):
        return error.errors
    if isinstance(error, e.InvalidInput):
        return [{"pointer": error.pointer, "detail": str(error)}]
    return None


def _headers(error: e.PolarisError, status: int) -> dict[str, str]:
    """Return Retry-After where trying again may help: always with 429 and 503, elsewhere if it is known."""
    seconds = getattr(error, "retry_after", None)
    if seconds is None and status in {429, 503}:
        seconds = _RETRY_AFTER
    headers = {} if seconds is None else {"Retry-After": str(max(1, math.ceil(seconds)))}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return headers


MOST_FAULTS = 20
"""So many faults of a body are told."""
MOST_FIELDS = 100
"""No body that we know has so many fields."""


def validated(model: type[Model], value: Any) -> Model:
    """Return a body's JSON value as a model; raise InvalidBody with a pointer for each fault."""
    if isinstance(value, dict) and len(value) > MOST_FIELDS:
        # Each would be a fault of its own, and there may be millions: pydantic makes them all.
        raise InvalidBody([{"pointer": "", "detail": f"the body has more than {MOST_FIELDS} fields"}])
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise InvalidBody(_faults_of(error.errors(include_url=False, include_input=False))) from None


def _faults_of(found: Iterable[Any]) -> list[Fault]:
    """Return pydantic's findings as faults; a `loc` is the way to the value, without its root.

    The first `MOST_FAULTS`: whoever sent more than that reads no further.
    """
    faults: dict[tuple[str, str], Fault] = {}
    for finding in found:
        pointer, detail = _pointer(finding["loc"]), _sentence(finding)
        # The branches of a union each say what they miss, at one place.
        faults.setdefault((pointer, detail), {"pointer": pointer, "detail": detail})
        if len(faults) == MOST_FAULTS:
            break
    return list(faults.values())


def _pointer(loc: Iterable[str | int]) -> str:
    return "".join(f"/{escape(str(step))}" for step in loc)


def _sentence(finding: Mapping[str, Any]) -> str:
    message = str(finding["msg"])
    return message.removeprefix("Value error, ")


def _from_validation(error: RequestValidationError) -> Response:
    """Return the problem of a request that FastAPI could not turn into a route's parameters."""
    found = error.errors()
    for finding in found:
        if finding["type"] == "json_invalid":
            why = finding.get("ctx", {}).get("error", finding["msg"])
            return from_error(NotJson(f"the body is not JSON: {why}"))
    faults: list[Fault] = []
    for finding in found:
        where, *rest = finding["loc"] or ("body",)
        if where == "body":
            faults += _faults_of([{**finding, "loc": rest}])
        else:
            name = str(rest[0]) if rest else str(where)
            faults.append({"pointer": "", "parameter": name, "detail": f"{name}: {_sentence(finding)}"})
    first = faults[0]
    at = "" if "parameter" in first else f"{first['pointer'] or 'the body'}: "
    return problem_response(*KINDS[e.InvalidInput], detail=at + first["detail"], errors=faults)


def _from_http(error: HTTPException) -> Response:
    """Return the problem of what the router or a library raised."""
    phrase = HTTPStatus(error.status_code).phrase
    code = _ROUTER_CODES.get(error.status_code, phrase.lower().replace(" ", "-"))
    detail = str(error.detail) if error.detail and error.detail != phrase else f"{phrase}."
    return problem_response(error.status_code, code, phrase, detail, headers=error.headers)


def from_exception(error: Exception, kinds: Kinds = KINDS) -> Response:
    """Return the problem that anything raised is; what nobody foresaw is logged with its traceback."""
    if isinstance(error, e.PolarisError):
        return from_error(error, kinds)
    if isinstance(error, RequestValidationError):
        return _from_validation(error)
    if isinstance(error, HTTPException):
        return _from_http(error)
    if isinstance(error, ClientDisconnect):
        return problem_response(400, "disconnected", "Disconnected", "The caller left before the end.")
    _log.error("unforeseen error", exc_info=error)
    return problem_response(
        *kinds[e.PolarisError],
        detail="The service failed in a way that nobody foresaw; its log says how.",
    )


def install(app: FastAPI, kinds: Kinds | None = None) -> None:
    """Make every error of the application a problem document.

    `kinds` adds to KINDS, or says otherwise for this application. Call it before middleware is added
    that shall see the status of answers to unforeseen errors.
    """
    table = {**KINDS, **(kinds or {})}

    async def answer(_: Request, error: Exception) -> Response:
        return from_exception(error, table)

    for foreseen in (e.PolarisError, RequestValidationError, HTTPException, ClientDisconnect):
        app.add_exception_handler(foreseen, answer)
    app.add_middleware(_LastResort)


class _LastResort:
    """ASGI middleware: what nobody foresaw is logged with its traceback, and answered without it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            if started:  # too late for another answer: let the server cut the connection
                raise
            await from_exception(error)(scope, receive, send)


class Problem(BaseModel):
    """A problem document, for the OpenAPI description."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[Fault] = []
    error: dict[str, str | None]


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route that may answer with problems of these statuses."""
    schema = {"schema": Problem.model_json_schema()}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: schema}}
        for status in sorted(statuses)
    }
