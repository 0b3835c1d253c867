"""`polaris smoke [NAME]`: whether an index answers, all the way from a document to its citation.

What `helm test` runs, and a pipeline after a deployment.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from typing import Annotated, Any

import typer

from polaris.errors import Refused
from polaris.settings import ClientSettings
from polaris_cli import names, show
from polaris_cli.client import Service
from polaris_cli.flags import Format, Output, with_settings

_QUESTION = "When does the keeper of the {place} lighthouse light the lamp?"
_TEXT = "The keeper of the {place} lighthouse lights the lamp at dusk and puts it out at dawn, every day."
# For the worker to embed one document, behind whatever else it has to do.
_SEARCHABLE_MS = 60_000


@with_settings(ClientSettings)
def smoke(
    name: Annotated[
        str,
        typer.Argument(
            metavar="[NAME]", help="The index; without it the service is asked whether it is ready."
        ),
    ] = "",
    *,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Only ask: what is there need not have an answer.")
    ] = False,
    output: Output = Format.TEXT,
    settings: ClientSettings,
) -> None:
    """Check that an index answers: put a document, ask, check the citation, erase it.

    Waits while the service is starting or busy.
    """
    index = names.parse(name) if name else None
    began = time.monotonic()
    with Service(settings) as service:
        ready = service.patiently(lambda: service.text("/readyz"), show.say)
        done = _check_index(service, index, read_only=read_only) if index else {}
    result = {
        "server": settings.server,
        "ready": ready,
        **done,
        "seconds": round(time.monotonic() - began, 3),
    }
    if output is Format.JSON:
        show.json_out(result)
    else:
        what = f"{index} answers" if index else f"{settings.server} answers: {ready}"
        cited = " with a citation that is right" if "document" in done else ""
        print(f"{what}{cited} ({result['seconds']:.1f} s)")


def _check_index(service: Service, index: names.IndexName, *, read_only: bool) -> dict[str, Any]:
    service.patiently(lambda: service.get(index.path), show.say)
    place = f"Cape {secrets.token_hex(4)}"
    done = _ask(service, index, place) if read_only else _with_document(service, index, place)
    return {"index": str(index), **done}


def _ask(service: Service, index: names.IndexName, place: str) -> dict[str, Any]:
    answer = service.post(f"{index.path}/answer", {"question": _QUESTION.format(place=place)})
    return {"answer": answer["answer"], "generation": answer["generation"]}


def _with_document(service: Service, index: names.IndexName, place: str) -> dict[str, Any]:
    text = _TEXT.format(place=place)
    document = f"polaris-smoke-{secrets.token_hex(4)}"
    path = f"{index.path}/documents/{document}"
    written = service.put(path, {"text": text, "title": "Smoke test"})
    try:
        seen = {"after_sequence": written["sequence"], "timeout_ms": _SEARCHABLE_MS, "k": 1}
        service.post(f"{index.path}/search", {"query": _QUESTION.format(place=place), **seen})
        answer = service.post(f"{index.path}/answer", {"question": _QUESTION.format(place=place)})
        _check(answer, document, text)
        return {"answer": answer["answer"], "generation": answer["generation"], "document": document}
    finally:
        service.delete(f"{path}?erase=true")


def _check(answer: Any, document: str, text: str) -> None:
    """Raise Refused unless the document is cited, by the very characters that it has."""
    cited = [citation for citation in answer["citations"] if citation["document"] == document]
    if not cited:
        others = ", ".join(citation["document"] for citation in answer["citations"]) or "nothing"
        raise Refused(f"the answer cites {others} and not {document}: {answer['answer']!r}")
    for citation in cited:
        start, end = citation["span"]
        digest = hashlib.sha256(text[start:end].encode()).hexdigest()
        if (citation["text"], citation["sha256"]) != (text[start:end], digest):
            raise Refused(f"the citation of {document} at [{start}:{end}] is not what stands there")
