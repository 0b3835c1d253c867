"""Documents in, out and away. Below `/documents/` there are only ids: any may hold a slash."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal
from urllib.parse import unquote_to_bytes

import orjson
from fastapi import APIRouter, Query, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from polaris.errors import InvalidInput
from polaris_service.bodies import lines, read_json, require_media_type
from polaris_service.documents.batch import Batch, BatchLimits
from polaris_service.documents.model import Document, Limits, Line, check_id, parse_document
from polaris_service.documents.store import Condition, Stored, Summary, Written
from polaris_service.gate import Access
from polaris_service.indexes import ServedIndex
from polaris_service.parts import Parts
from polaris_service.problems import documented

PATH = "/v1/indexes/{namespace}/{name}/documents"
PAGE = 100
LONGEST_PAGE = 1000
_VERSION = 2**31 - 1
_NDJSON = "application/x-ndjson"
_TAG = re.compile(r'^(?:W/)?"?([0-9]{1,10})"?$')


class Ndjson(Response):
    """Lines that are sent as they come, while the request is still read."""

    media_type = _NDJSON

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        super().__init__()
        self._pieces = pieces
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send the pieces. `receive` is the reader's: nobody else may wait on it."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for piece in self._pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except ClientDisconnect:
            return  # What was committed stays; what was not acknowledged is sent again.
        await send({"type": "http.response.body", "body": b""})


def router(parts: Parts) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["documents"])
    settings = parts.settings
    limits = Limits(settings.max_document_bytes, settings.max_id_bytes)
    batch_limits = BatchLimits(settings.max_batch_lines, settings.max_body_bytes, limits)
    store = parts.store

    async def admitted(request: Request, access: Access, namespace: str, name: str) -> ServedIndex:
        await parts.gate.admit(request, access, namespace, name)
        return await parts.indexes.get(namespace, name)

    @routes.put(
        PATH + "/{id:path}",
        summary="Put a document",
        status_code=202,
        responses={
            200: {"description": "It was there already, the same.", "content": _json(_WRITTEN)},
            202: {"description": "Durable; searchable soon.", "content": _json(_WRITTEN)},
            **documented(400, 401, 403, 404, 412, 413, 415, 422, 503, 504),
        },
        openapi_extra=_body("application/json", Document.model_json_schema()),
    )
    async def put(
        request: Request,
        namespace: str,
        name: str,
        retry: Annotated[bool, Query(description="Try one that failed, or waits, anew at once.")] = False,
    ) -> Response:
        """Make the document what the body says.

        202 once it is durable; 200 where it was so already. `If-Match: "3"` writes only over version 3,
        `If-None-Match: *` only a new document. Wait for `sequence` with a search's `after_sequence`.
        """
        index = await admitted(request, Access.WRITE, namespace, name)
        external_id = _id(request, limits)
        condition = _condition(request)
        body = await read_json(request, settings.max_body_bytes)
        write = parse_document(external_id, body, index.attribute_types, limits)
        return _written(await store.put(index, write, condition, retry=retry))

    @routes.post(
        PATH,
        summary="Put many documents",
        status_code=200,  # FastAPI looks for it in the class otherwise
        response_class=Ndjson,
        responses={
            200: {
                "description": "One result for each line, in order, as groups of them are durable.",
                "content": {_NDJSON: {"schema": _LINE_RESULT}},
            },
            **documented(401, 403, 404, 415, 503),
        },
        openapi_extra=_body(_NDJSON, Line.model_json_schema()),
    )
    async def post(request: Request, namespace: str, name: str) -> Response:
        """Put the documents of all lines; one that is wrong is an error line, and the others go on.

        A line with `model` and `chunks` brings its vectors: nothing is embedded again, and it is
        searchable when its result comes. A later line of the same id is a later version.
        """
        index = await admitted(request, Access.WRITE, namespace, name)
        require_media_type(request, _NDJSON, "application/jsonl", "application/jsonlines")
        batch = Batch(store, parts.indexes, parts.loading, index, batch_limits)
        return Ndjson(batch.results(lines(request, batch_limits.line_bytes)))

    @routes.get(
        PATH,
        summary="List documents",
        responses={
            200: {"description": "A page, by id.", "content": _json(_PAGE_SCHEMA)},
            **documented(401, 403, 404, 422, 503, 504),
        },
    )
    async def listing(  # noqa: PLR0913, PLR0917  parameters of the route
        request: Request,
        namespace: str,
        name: str,
        after: Annotated[str, Query(description="The `after` of the page before.")] = "",
        limit: Annotated[int, Query(ge=1, le=LONGEST_PAGE)] = PAGE,
        state: Annotated[Literal["pending", "searchable", "failed"] | None, Query()] = None,
    ) -> Response:
        """Return documents without their texts, in the order of their ids."""
        index = await admitted(request, Access.READ, namespace, name)
        if after:
            check_id(after, limits)
        found, further = await store.page(index, after, limit, state)
        return _answer({"documents": [_summary(document) for document in found], "after": further})

    @routes.get(
        PATH + "/{id:path}",
        summary="Get a document",
        responses={
            200: {"description": "The document.", "content": _json(_DOCUMENT)},
            **documented(401, 403, 404, 410, 422, 503, 504),
        },
    )
    async def get(
        request: Request,
        namespace: str,
        name: str,
        version: Annotated[int | None, Query(ge=1, le=_VERSION, description="An older one.")] = None,
    ) -> Response:
        """Return a document with its text, and how far the serving generation is with it."""
        index = await admitted(request, Access.READ, namespace, name)
        found = await store.get(index, _id(request, limits), version)
        return _answer(_stored(found), headers={"ETag": f'"{found.version}"'})

    @routes.delete(
        PATH + "/{id:path}",
        summary="Delete or erase a document",
        status_code=202,
        responses={
            200: {"description": "Erased, or it was deleted already.", "content": _json(_WRITTEN)},
            202: {"description": "Deleted; not found soon.", "content": _json(_WRITTEN)},
            **documented(401, 403, 404, 412, 422, 503, 504),
        },
    )
    async def delete(
        request: Request,
        namespace: str,
        name: str,
        erase: Annotated[bool, Query(description="Remove every version, everywhere, at once.")] = False,
    ) -> Response:
        """Delete a document: it is not found any more, and its versions stay readable.

        With `erase` nothing of it is left when this returns but the fact that it was there (410).
        """
        index = await admitted(request, Access.DELETE, namespace, name)
        external_id, condition = _id(request, limits), _condition(request)
        if erase:
            return _written(await store.erase(index, external_id, condition), new=200)
        return _written(await store.delete(index, external_id, condition))

    return routes


# --- requests ----------------------------------------------------------------------------------


def _id(request: Request, limits: Limits) -> str:
    """Return the id in the path, whose slashes may be percent-encoded or not."""
    decoded: str = request.path_params["id"]
    # The server replaces what is no UTF-8 by U+FFFD, which would make many ids one.
    if "\ufffd" in decoded:
        raw = request.scope.get("raw_path") or b""
        try:
            unquote_to_bytes(raw).decode()
        except UnicodeDecodeError:
            raise InvalidInput("the document's id is not UTF-8") from None
    return check_id(decoded, limits)


def _condition(request: Request) -> Condition:
    match = request.headers.get("if-match")
    none_match = request.headers.get("if-none-match")
    if none_match is not None and none_match.strip() != "*":
        raise InvalidInput("If-None-Match can only be *: there must be no such document yet")
    return Condition(
        versions=None if match is None or match.strip() == "*" else _versions(match),
        present=match is not None,
        absent=none_match is not None,
    )


def _versions(header: str) -> frozenset[int]:
    found = [_TAG.match(part.strip()) for part in header.split(",")]
    if not all(found):
        raise InvalidInput('If-Match is a version, such as "3", or *')
    return frozenset(int(match.group(1)) for match in found if match)


# --- answers -----------------------------------------------------------------------------------


def _answer(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, "application/json")


def _written(written: Written, *, new: int = 202) -> Response:
    return _answer(
        {"id": written.id, "version": written.version, "sequence": written.sequence},
        new if written.new else 200,
        {"ETag": f'"{written.version}"'},
    )


def _summary(document: Summary) -> dict[str, Any]:
    content: dict[str, Any] = {
        "id": document.id,
        "version": document.version,
        "sequence": document.sequence,
        "title": document.title,
        "uri": document.uri,
        "attributes": orjson.Fragment(document.attributes),
        "updated_at": document.updated_at,
        "state": document.state,
    }
    if document.tries:
        content |= {"tries": document.tries, "error": document.error}
    return content


def _stored(document: Stored) -> dict[str, Any]:
    return {**_summary(document), "text": document.text, "chunks": document.chunks}


# --- the description ---------------------------------------------------------------------------


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _body(media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema}}}}


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}


_TEXT = {"type": "string"}
_NUMBER = {"type": "integer"}
_OR_NONE = {"type": ["string", "null"]}
_WRITTEN = _object({"id": _TEXT, "version": _NUMBER, "sequence": _NUMBER})
_LINE_RESULT = _object(
    {"status": _NUMBER},
    {
        "id": _TEXT,
        "version": _NUMBER,
        "sequence": _NUMBER,
        "line": _NUMBER,
        "code": _TEXT,
        "detail": _TEXT,
        "errors": {"type": "array", "items": _object({"pointer": _TEXT, "detail": _TEXT})},
    },
)
_OF_ANY = {
    "id": _TEXT,
    "version": _NUMBER,
    "sequence": _NUMBER,
    "title": _OR_NONE,
    "uri": _OR_NONE,
    "attributes": {"type": "object"},
    "updated_at": {"type": "string", "format": "date-time"},
    "state": {"enum": ["pending", "searchable", "failed", "superseded"]},
}
_FAILED = {"tries": _NUMBER, "error": _TEXT}
_DOCUMENT = _object({**_OF_ANY, "text": _TEXT, "chunks": {"type": ["integer", "null"]}}, _FAILED)
_PAGE_SCHEMA = _object(
    {"documents": {"type": "array", "items": _object(_OF_ANY, _FAILED)}, "after": _OR_NONE}
)
