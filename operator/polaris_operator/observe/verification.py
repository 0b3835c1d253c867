"""The gates before a switch: a generation compared with the stored documents, at one moment."""

from __future__ import annotations

from sqlalchemy import Connection

from polaris import names
from polaris.sql import Sql, compose, identifier
from polaris_operator.postgres import run
from polaris_operator.steps import Verify
from polaris_operator.world.index import Verified

_SAMPLE = 200
# Only what is settled: documents behind come in all the time, and the switch looks at those itself.
_COUNTS = """
SELECT g.low_water AS settled, (SELECT count(*) FROM {documents} WHERE NOT deleted) AS documents,
  (SELECT count(*) FROM {documents} d JOIN {before} b ON b.document_id = d.id
   LEFT JOIN {after} a ON a.document_id = d.id
   WHERE d.sequence <= g.low_water AND NOT d.deleted AND b.sequence > coalesce(a.sequence, 0)) AS missing,
  (SELECT count(*) FROM {documents} d JOIN {after} a ON a.document_id = d.id
   WHERE d.sequence <= g.low_water AND d.deleted AND a.chunks > 0) AS surplus,
  (SELECT count(*) FROM {chunks}) AS chunks,
  (SELECT coalesce(sum(chunks), 0) FROM {after}) AS claimed
FROM polaris.generations g WHERE g.index_id = {index} AND g.number = {generation}
"""
# What is embedded of a chunk is its text, or the document's title and its text.
_HASHES = """
SELECT count(*) AS sampled,
  count(*) FILTER (WHERE v.document_id IS NULL OR c.text_hash NOT IN (
    sha256(convert_to(v.chunk, 'UTF8')),
    sha256(convert_to(v.title || chr(10) || v.chunk, 'UTF8')))) AS differing
FROM (SELECT document_id, version, span_start, span_end, text_hash FROM {chunks}
  ORDER BY random() LIMIT {limit}) c
LEFT JOIN LATERAL (
  SELECT v.document_id, coalesce(v.title, '') AS title,
    substr(v.text, c.span_start + 1, c.span_end - c.span_start) AS chunk
  FROM {versions} v WHERE v.document_id = c.document_id AND v.version = c.version
) v ON true
"""


def verify(connection: Connection, action: Verify) -> Verified:
    """Return what the gates look at; `connection` is in a transaction that sees one moment."""
    parts: dict[str, Sql | int] = {
        "documents": identifier(action.schema, names.DOCUMENTS),
        "versions": identifier(action.schema, names.VERSIONS),
        "before": identifier(action.schema, names.applied_table(action.serving)),
        "after": identifier(action.schema, names.applied_table(action.generation)),
        "chunks": identifier(action.schema, names.chunks_table(action.generation)),
        "index": action.index,
        "generation": action.generation,
        "limit": _SAMPLE,
    }
    counts = run(connection, compose(_COUNTS, **parts)).one()
    hashes = run(connection, compose(_HASHES, **parts)).one()
    return Verified(
        settled=counts.settled,
        documents=counts.documents,
        missing=counts.missing,
        surplus=counts.surplus,
        chunks=counts.chunks,
        claimed=int(counts.claimed),
        sampled=hashes.sampled,
        differing=hashes.differing,
    )


__all__ = ["verify"]
