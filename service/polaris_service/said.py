"""What is repeated of an error that another server answered with: its status, and names.

Free text of an error may quote what was sent, or the key, and would end in logs, beside documents and
before callers: a name such as `model_not_found` or `RESOURCE_EXHAUSTED` holds neither.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

_CODE = re.compile(r"(?=.{1,40}$)(?:[a-z]+(?:[_-][a-z]+)*|[A-Z]+(?:_[A-Z]+)*)")
_MEDIA_TYPE = re.compile(r"(?=.{1,80}$)[a-z]+/[a-z0-9.+-]+")


def code(value: Any) -> str | None:
    """Return a value that is a name of the kind that is repeated; None where it is anything else."""
    return value if isinstance(value, str) and _CODE.fullmatch(value) else None


def codes(said: Any) -> list[str]:
    """Return the names in an answer's error object (OpenAI's, Gemini's) or in a problem document."""
    if not isinstance(said, dict):
        return []
    holders = [holder for holder in (said.get("error"), said) if isinstance(holder, dict)]
    found = [code(holder.get(key)) for holder in holders for key in ("type", "code", "status")]
    return list(dict.fromkeys(name for name in found if name))


def summary(status: int, content: bytes) -> str:
    """Return an answer that is no success in a few words: status, names, size."""
    try:
        said = orjson.loads(content)
    except orjson.JSONDecodeError:
        said = None
    return f"{status} ({', '.join([*codes(said), f'{len(content):,} bytes'])})"


def media_type(header: str) -> str:
    """Return the media type that a header says, where it looks like one."""
    said = header.partition(";")[0].strip().lower()
    return said if _MEDIA_TYPE.fullmatch(said) else "nothing is said of its type"
