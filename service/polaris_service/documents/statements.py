"""The SQL of documents, composed once an index: names are quoted, values are parameters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from polaris import names
from polaris.layout import BEHIND
from polaris.sql import Sql, compose, identifier

# Where a document stands with a generation (d: stored_documents, a: g<n>_applied or nulls).
FAILED = Sql("(a.failed_sequence >= d.sequence AND a.sequence < d.sequence)")
SEARCHABLE = Sql("(a.sequence >= d.sequence)")
STATES = {"pending": BEHIND, "failed": FAILED, "searchable": SEARCHABLE}

GENERATIONS = "SELECT number, state FROM polaris.generations WHERE index_id = $1 ORDER BY number"
STATE = "SELECT state FROM polaris.generations WHERE index_id = $1 AND number = $2"


@dataclass(frozen=True)
class Statements:
    """Statements of one index and one of its generations."""

    lock: str
    """$1 ids: the documents' rows, locked."""
    write: str
    """Draw sequences from the clock, in the order of commits, and write documents and versions.

    $1 documents, NULL for new ones. One that somebody else made meanwhile is missing in what returns.
    """
    touch: str
    """$1 document: draw a sequence for a document that does not change, so that it is behind again."""
    state_of: str
    """$1 document: its row in applied."""
    forgive: str
    """$1 document: begin its tries anew."""
    reserve_applied: str
    """$1 documents: make and lock their rows in applied."""
    lock_chunks: str
    """Fails at once while a build of the index holds the table."""
    share_switch: str
    """What becomes searchable from here on, no switch of generations overlooks."""
    remove_chunks: str
    """$1 documents: remove their chunks."""
    mark_applied: str
    """$1 documents, $2 versions, $3 sequences, $4 numbers of chunks: they are applied."""
    remove_versions: str
    """$1 document: remove all of its versions."""
    bury: str
    """$1 document, $2 version: draw a sequence and leave nothing but a tombstone."""
    get: str
    """$1 id, $2 version or NULL for the present one."""
    any_chunk: str
    """Whether the generation has any chunk."""


def _tables(schema: str, generation: int) -> dict[str, Sql | int]:
    return {
        "documents": identifier(schema, names.DOCUMENTS),
        "versions": identifier(schema, names.VERSIONS),
        "clock": identifier(schema, names.CLOCK),
        "chunks": identifier(schema, names.chunks_table(generation)),
        "applied": identifier(schema, names.applied_table(generation)),
        "pending": BEHIND,
    }


def _text(template: str, tables: dict[str, Sql | int]) -> str:
    """Compose a statement, as the plain string that asyncpg insists on."""
    return str(compose(template, **tables))


# In one order for everybody, so that no two batches wait for each other.
_LOCK = """
SELECT id, external_id, version, sequence, content_hash, deleted FROM {documents}
WHERE external_id = ANY($1::text[]) ORDER BY external_id FOR UPDATE
"""
# Documents that are new are made here and nowhere else, so after the clock: of two who make the same
# one, the second waits for the clock and not for the first one's row, and makes one row less than given.
_WRITE = """
WITH given AS (
  SELECT * FROM unnest($1::bigint[], $2::text[], $3::integer[], $4::bytea[], $5::boolean[], $6::text[],
    $7::text[], $8::text[], $9::jsonb[]) WITH ORDINALITY
    AS given(id, external_id, version, content_hash, deleted, text, title, uri, attributes, n)
), tick AS (
  UPDATE {clock} SET sequence = sequence + cardinality($1::bigint[])
  RETURNING sequence - cardinality($1::bigint[]) AS base
), made AS (
  INSERT INTO {documents} (external_id, version, sequence, content_hash, deleted)
  SELECT g.external_id, g.version, tick.base + g.n, g.content_hash, g.deleted
  FROM given g CROSS JOIN tick WHERE g.id IS NULL
  ON CONFLICT (external_id) DO NOTHING RETURNING id, sequence
), moved AS (
  UPDATE {documents} d SET version = g.version, sequence = tick.base + g.n, content_hash = g.content_hash,
    deleted = g.deleted, updated_at = now()
  FROM given g CROSS JOIN tick WHERE d.id = g.id RETURNING d.id, d.sequence
), written AS (
  SELECT w.id, w.sequence, w.sequence - tick.base AS n
  FROM (SELECT * FROM made UNION ALL SELECT * FROM moved) AS w CROSS JOIN tick
), kept AS (
  INSERT INTO {versions}
    (document_id, version, sequence, content_hash, deleted, text, title, uri, attributes)
  SELECT w.id, g.version, w.sequence, g.content_hash, g.deleted, g.text, g.title, g.uri, g.attributes
  FROM written w JOIN given g ON g.n = w.n
)
SELECT id, sequence FROM written ORDER BY n
"""
_TOUCH = """
WITH tick AS (UPDATE {clock} SET sequence = sequence + 1 RETURNING sequence)
UPDATE {documents} d SET sequence = tick.sequence FROM tick WHERE d.id = $1 RETURNING d.sequence
"""
_STATE_OF = """
SELECT sequence, failed_sequence FROM {applied} WHERE document_id = $1
"""
_FORGIVE = """
UPDATE {applied} SET tries = 0, error = NULL, next_try_at = NULL, failed_sequence = 0 WHERE document_id = $1
"""
_RESERVE_APPLIED = """
INSERT INTO {applied} AS a (document_id) SELECT id FROM unnest($1::bigint[]) AS given(id) ORDER BY id
ON CONFLICT (document_id) DO UPDATE SET version = a.version
"""
_MARK_APPLIED = """
INSERT INTO {applied} (document_id, version, sequence, chunks, applied_at)
SELECT document_id, version, sequence, chunks, now()
FROM unnest($1::bigint[], $2::integer[], $3::bigint[], $4::integer[])
  AS g(document_id, version, sequence, chunks)
ON CONFLICT (document_id) DO UPDATE SET version = excluded.version, sequence = excluded.sequence,
  chunks = excluded.chunks, failed_sequence = 0, tries = 0, error = NULL, next_try_at = NULL,
  applied_at = excluded.applied_at
"""
_BURY = """
WITH tick AS (UPDATE {clock} SET sequence = sequence + 1 RETURNING sequence)
UPDATE {documents} d SET version = $2, sequence = tick.sequence, deleted = true, content_hash = '',
  updated_at = now()
FROM tick WHERE d.id = $1 RETURNING d.sequence
"""
_GET = """
SELECT d.version AS present, d.sequence AS present_sequence, d.deleted AS present_deleted, d.updated_at,
  v.version, v.sequence, v.deleted, v.text, v.title, v.uri, v.attributes, v.created_at,
  a.sequence AS applied_sequence, a.failed_sequence, a.tries, a.error, a.chunks,
  EXISTS (SELECT FROM {versions} o WHERE o.document_id = d.id) AS kept
FROM {documents} d
LEFT JOIN {versions} v ON v.document_id = d.id AND v.version = coalesce($2::integer, d.version)
LEFT JOIN {applied} a ON a.document_id = d.id
WHERE d.external_id = $1
"""
_LIST = """
SELECT d.external_id, d.version, d.sequence, d.updated_at, v.title, v.uri, v.attributes,
  a.sequence AS applied_sequence, a.failed_sequence, a.tries, a.error
FROM {documents} d
JOIN {versions} v ON v.document_id = d.id AND v.version = d.version
LEFT JOIN {applied} a ON a.document_id = d.id
WHERE NOT d.deleted AND d.external_id > $1 AND {condition} ORDER BY d.external_id LIMIT $2
"""


@lru_cache(maxsize=1024)
def statements(schema: str, generation: int) -> Statements:
    """Return the statements of an index's documents and of one of its generations."""
    tables = _tables(schema, generation)

    def made(template: str) -> str:
        return _text(template, tables)

    return Statements(
        lock=made(_LOCK),
        write=made(_WRITE),
        touch=made(_TOUCH),
        state_of=made(_STATE_OF),
        forgive=made(_FORGIVE),
        reserve_applied=made(_RESERVE_APPLIED),
        lock_chunks=made("LOCK TABLE {chunks} IN ROW EXCLUSIVE MODE NOWAIT"),
        share_switch=f"SELECT pg_advisory_xact_lock_shared({names.switch_lock(schema, generation)})",
        remove_chunks=made("DELETE FROM {chunks} WHERE document_id = ANY($1::bigint[])"),
        mark_applied=made(_MARK_APPLIED),
        remove_versions=made("DELETE FROM {versions} WHERE document_id = $1"),
        bury=made(_BURY),
        get=made(_GET),
        any_chunk=made("SELECT EXISTS (SELECT FROM {chunks})"),
    )


@lru_cache(maxsize=1024)
def listing(schema: str, generation: int, state: str | None) -> str:
    """Return the statement of a page: $1 after, $2 limit."""
    condition = STATES[state] if state else Sql("true")
    return _text(_LIST, {"condition": condition, **_tables(schema, generation)})


# --- what a worker does (behind) ---------------------------------------------------------------


@dataclass(frozen=True)
class WorkStatements:
    """Statements by which a worker brings a generation level."""

    head: str
    """$1 index, $2 generation: how far the clock and the generation are."""
    missing: str
    """$1 sequence, $2 limit: make rows in applied for documents above the sequence."""
    deletions: str
    """$1 sequence, $2 limit: deleted documents above the sequence that are behind, and their sequences."""
    missing_of: str
    """$1 documents: make the rows in applied that they lack."""
    claim_deletions: str
    """$1 documents: lock those that are deleted and behind, those that others hold left out."""
    claim: str
    """$1 sequence, $2 limit: lock living documents that are behind, those that others hold left out."""
    claim_one: str
    """$1 document: lock it if it is there and behind."""
    texts: str
    """$1 documents, $2 versions, $3 bytes: their versions, in order, the first and as many as fit."""
    known: str
    """$1 documents: vectors that they have, by the hash of what was embedded."""
    fail: str
    """$1 document, $2 tries, $3 error, $4 failed sequence, $5 seconds until the next try or NULL."""
    tries: str
    """$1 document: its row in applied, locked."""
    raise_low_water: str
    """$1 index, $2 generation: everything below the first document that is behind is settled."""
    next_try: str
    """$1 sequence: seconds until a document above it may be tried again."""
    many_behind: str
    """$1 sequence, $2 limit: how many documents are behind, counted up to the limit."""
    backlog: str
    """$1 index, $2 generation, $3 limit: how many documents are behind, and the oldest's age in seconds."""
    few_chunks: str
    """$1 limit: whether the table has fewer chunks."""


_HEAD = """
SELECT c.sequence, g.low_water, g.state, g.vector_index IS NOT NULL AS indexed,
  g.load_requested_at IS NOT NULL AS load_requested
FROM {clock} c, polaris.generations g WHERE g.index_id = $1 AND g.number = $2
"""
_MISSING = """
INSERT INTO {applied} (document_id)
SELECT id FROM (
  SELECT d.id FROM {documents} d WHERE d.sequence > $1
    AND NOT EXISTS (SELECT FROM {applied} a WHERE a.document_id = d.id) ORDER BY d.sequence LIMIT $2
) AS missing ORDER BY id ON CONFLICT (document_id) DO NOTHING
"""
_DELETIONS = """
SELECT d.id, d.sequence FROM {documents} d LEFT JOIN {applied} a ON a.document_id = d.id
WHERE d.sequence > $1 AND d.deleted AND {pending} ORDER BY d.sequence LIMIT $2
"""
_MISSING_OF = """
INSERT INTO {applied} (document_id) SELECT id FROM unnest($1::bigint[]) AS given(id)
WHERE NOT EXISTS (SELECT FROM {applied} a WHERE a.document_id = id)
ORDER BY id ON CONFLICT (document_id) DO NOTHING
"""
# Whenever the next try of what was deleted would have been: nothing is embedded, so nothing is waited for.
_CLAIM_DELETIONS = """
SELECT d.id, d.version, d.sequence, a.version AS applied_version
FROM {documents} d JOIN {applied} a ON a.document_id = d.id
WHERE d.id = ANY($1::bigint[]) AND d.deleted AND {pending} FOR UPDATE OF a SKIP LOCKED
"""
_CLAIM = """
SELECT d.id, d.version, d.sequence, a.version AS applied_version
FROM {documents} d JOIN {applied} a ON a.document_id = d.id
WHERE d.sequence > $1 AND NOT d.deleted AND {pending} AND (a.next_try_at IS NULL OR a.next_try_at <= now())
ORDER BY d.sequence LIMIT $2 FOR UPDATE OF a SKIP LOCKED
"""
_CLAIM_ONE = """
SELECT d.id, d.version, d.sequence, a.version AS applied_version
FROM {documents} d JOIN {applied} a ON a.document_id = d.id
WHERE d.id = $1 AND NOT d.deleted AND {pending} FOR UPDATE OF a SKIP LOCKED
"""
_TEXTS = """
SELECT id, text, title, attributes FROM (
  SELECT g.id, g.n, v.text, v.title, v.attributes,
    sum(octet_length(v.text)) OVER (ORDER BY g.n) AS bytes
  FROM unnest($1::bigint[], $2::integer[]) WITH ORDINALITY AS g(id, version, n)
  JOIN {versions} v ON v.document_id = g.id AND v.version = g.version
) AS found WHERE n = 1 OR bytes <= $3 ORDER BY n
"""
_KNOWN = """
SELECT document_id, text_hash, embedding FROM {chunks} WHERE document_id = ANY($1::bigint[])
"""
_FAIL = """
UPDATE {applied} SET tries = $2, error = $3, failed_sequence = $4,
  next_try_at = now() + make_interval(secs => $5::double precision)
WHERE document_id = $1
"""
_TRIES = """
SELECT tries, sequence, failed_sequence FROM {applied} WHERE document_id = $1 FOR UPDATE
"""
# The first that is behind ends the look: a backlog that nobody embeds is not read again and again.
# One statement, so one snapshot: what the clock says in it is what the documents in it show, since
# sequences are in the order of commits.
_RAISE_LOW_WATER = """
UPDATE polaris.generations g SET low_water = settled.sequence
FROM (
  SELECT coalesce((
    SELECT d.sequence - 1 FROM {documents} d LEFT JOIN {applied} a ON a.document_id = d.id
    WHERE d.sequence > (SELECT low_water FROM polaris.generations WHERE index_id = $1 AND number = $2)
      AND {pending} ORDER BY d.sequence LIMIT 1
  ), (SELECT sequence FROM {clock})) AS sequence
) AS settled
WHERE g.index_id = $1 AND g.number = $2 AND g.low_water < settled.sequence
"""
_NEXT_TRY = """
SELECT extract(epoch FROM min(a.next_try_at) - now())::double precision
FROM {documents} d JOIN {applied} a ON a.document_id = d.id
WHERE d.sequence > $1 AND {pending} AND a.next_try_at > now()
"""
_MANY_BEHIND = """
SELECT count(*) FROM (
  SELECT FROM {documents} d LEFT JOIN {applied} a ON a.document_id = d.id
  WHERE d.sequence > $1 AND {pending} LIMIT $2
) AS behind
"""
# A level generation is not looked into: its low water is what the clock says.
_BACKLOG = """
SELECT count(b.updated_at) AS documents,
  coalesce(greatest(extract(epoch FROM now() - min(b.updated_at)), 0), 0)::double precision AS seconds
FROM polaris.generations g CROSS JOIN {clock} c LEFT JOIN LATERAL (
  SELECT d.updated_at FROM {documents} d LEFT JOIN {applied} a ON a.document_id = d.id
  WHERE d.sequence > g.low_water AND {pending} ORDER BY d.sequence LIMIT $3
) AS b ON g.low_water < c.sequence
WHERE g.index_id = $1 AND g.number = $2 AND g.state <> 'building'
"""
_FEW_CHUNKS = """
SELECT count(*) < $1 FROM (SELECT FROM {chunks} LIMIT $1) AS few
"""


@lru_cache(maxsize=1024)
def work_statements(schema: str, generation: int) -> WorkStatements:
    """Return the statements by which a worker brings one generation of an index level."""
    tables = _tables(schema, generation)

    def made(template: str) -> str:
        return _text(template, tables)

    return WorkStatements(
        head=made(_HEAD),
        missing=made(_MISSING),
        deletions=made(_DELETIONS),
        missing_of=made(_MISSING_OF),
        claim_deletions=made(_CLAIM_DELETIONS),
        claim=made(_CLAIM),
        claim_one=made(_CLAIM_ONE),
        texts=made(_TEXTS),
        known=made(_KNOWN),
        fail=made(_FAIL),
        tries=made(_TRIES),
        raise_low_water=made(_RAISE_LOW_WATER),
        next_try=made(_NEXT_TRY),
        many_behind=made(_MANY_BEHIND),
        backlog=made(_BACKLOG),
        few_chunks=made(_FEW_CHUNKS),
    )


# --- counting ----------------------------------------------------------------------------------

# Rows beyond which they are estimated from PostgreSQL's statistics: counting a million takes 60 ms.
EXACT_COUNTS = 1_000_000

ESTIMATES = """
SELECT greatest(0, max(c.reltuples) FILTER (WHERE c.relname = $2))::bigint AS documents,
  greatest(0, max(c.reltuples) FILTER (WHERE c.relname = $3))::bigint AS chunks
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname IN ($2, $3)
"""
_COUNTS = """
SELECT
  CASE WHEN $1 THEN (SELECT count(*) FROM {documents} WHERE NOT deleted) END AS documents,
  CASE WHEN $2 THEN (SELECT count(*) FROM {chunks}) END AS chunks,
  (SELECT count(*) FROM {documents} d LEFT JOIN {applied} a ON a.document_id = d.id
   WHERE d.sequence > $3 AND {pending}) AS pending,
  (SELECT count(*) FROM {applied} a JOIN {documents} d ON d.id = a.document_id
   WHERE a.failed_sequence > a.sequence AND a.failed_sequence >= d.sequence) AS failed,
  (SELECT sequence FROM {clock}) AS sequence
"""


@lru_cache(maxsize=1024)
def counts(schema: str, generation: int) -> str:
    """Return the statement that counts: $1 documents exactly?, $2 chunks exactly?, $3 low water."""
    return _text(_COUNTS, _tables(schema, generation))
