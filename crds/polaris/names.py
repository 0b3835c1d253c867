"""Every name that POLARIS derives, in one place, each within PostgreSQL's 63 bytes.

Roles are global to a PostgreSQL server and databases are not, so roles carry the id of the catalog
(eight hexadecimal digits, drawn when the catalog is made). All names made here match
`[a-z][a-z0-9_]*` (roles of Vault: with `-`), so they need no quoting, and are quoted all the same.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Literal

MAX_BYTES = 63
CATALOG_SCHEMA = "polaris"

# Granted once by a database administrator (`polaris bootstrap`); permanent, never a login.
OPERATOR_ROLE = "polaris_operator"
ISSUER_ROLE = "polaris_issuer"

ADOPT_ANNOTATION = "polaris.dev/adopt"
FINALIZER = "polaris.dev/delete"
MANAGED_BY = "polaris.dev/managed-by"

# Channels of LISTEN/NOTIFY. The payload is the id of the index.
WORK_CHANNEL = "polaris_work"
CATALOG_CHANNEL = "polaris_catalog"
TRACE_CHANNEL = "polaris_trace"
"""Which trace accepted documents belong to: index, sequences and headers in JSON."""

Purpose = Literal["query", "worker"]
IndexRole = Literal["owner", "reader", "writer"]

DOCUMENTS = "stored_documents"
VERSIONS = "stored_versions"
CLOCK = "clock"
DOCUMENTS_VIEW = "documents"
CHUNKS_VIEW = "chunks"

_SLUG_BYTES = 40


def bounded(name: str) -> str:
    """Return `name` unchanged; raise ValueError where PostgreSQL would cut it silently."""
    if len(name.encode()) > MAX_BYTES:
        raise ValueError(f"{name!r} has {len(name.encode())} bytes, PostgreSQL keeps {MAX_BYTES}")
    return name


def slug(name: str) -> str:
    """Return the readable part of a derived name: lower case, `[a-z0-9_]`, at most 40 bytes."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:_SLUG_BYTES].rstrip("_") or "x"


def digest(value: Mapping[str, Any]) -> str:
    """Return eight hexadecimal digits of the SHA-256 of a JSON object, keys sorted."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def group_role(catalog: str, purpose: Purpose) -> str:
    """NOLOGIN role that the logins of the service (`query`) or of the workers are members of."""
    return bounded(f"polaris_{catalog}_{purpose}")


def index_role(catalog: str, index: int, role: IndexRole) -> str:
    """NOLOGIN role of one index: its owner, those who read its views, those who write documents."""
    return bounded(f"polaris_{catalog}_i{index}_{role}")


def login(catalog: str, credential: int) -> str:
    """Login that the operator itself issues, where a team has no Vault; one for each ledger row."""
    return bounded(f"polaris_{catalog}_login_{credential}")


def vault_role(catalog: str, group: str) -> str:
    """Role of Vault's database engine that issues members of the PostgreSQL role `group`."""
    prefix = f"polaris_{catalog}_"
    return f"polaris-{catalog}-{group.removeprefix(prefix).replace('_', '-')}"


def index_schema(index: int, name: str) -> str:
    """Schema of one index; readable, and unique by the number."""
    return bounded(f"polaris_i{index}_{slug(name)}")


def tombstone_name(name: str, index: int) -> str:
    """Name of an index that was deleted and can still be had back: one that no object has."""
    return f"{name}@{index}"


def tombstone_schema(schema: str) -> str:
    """Schema of an index that was deleted and can still be had back; as long as it was."""
    return re.sub(r"^polaris_i(?=[0-9])", "deleted_i", schema)


def living_schema(schema: str) -> str:
    """Schema of an index before it was deleted."""
    return re.sub(r"^deleted_i(?=[0-9])", "polaris_i", schema)


def living_name(name: str) -> str:
    """Name of an index before it was deleted."""
    return name.partition("@")[0]


def chunks_table(generation: int) -> str:
    """Table of one generation's chunks and their vectors."""
    return f"g{generation}_chunks"


def applied_table(generation: int) -> str:
    """Table that says, for each document, which version this generation has applied."""
    return f"g{generation}_applied"


def vector_index(generation: int, parameters: Mapping[str, Any]) -> str:
    """Name of a vector index; differs whenever its parameters do, so two may stand side by side."""
    return bounded(f"g{generation}_chunks_vector_{digest(parameters)}")


def attribute_index(generation: int, attribute: str, kind: str) -> str:
    """Name of the index of one filterable attribute; differs by type, so a change is seen."""
    return bounded(f"g{generation}_by_{attribute}_{kind[:4]}")


def advisory_key(*parts: object) -> int:
    """Return the signed 64-bit key of an advisory lock for these parts."""
    digest_bytes = hashlib.sha256("\x00".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest_bytes[:8], "big", signed=True)


def switch_lock(schema: str, generation: int) -> int:
    """Key of the lock that workers share while they write chunks, and a switch from the generation holds."""
    return advisory_key("switch", schema, generation)
