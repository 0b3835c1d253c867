"""The check against the stored text: no citation leaves without it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from polaris import names
from polaris.sql import compose
from polaris_service.answer.citations import Citation
from polaris_service.database import Database
from polaris_service.indexes import ServedIndex

# An erased document has no version left, and one that was deleted is not told of any more.
_VERIFY = """
SELECT c.n
FROM unnest($1::text[], $2::int[], $3::int[], $4::int[], $5::text[]) WITH ORDINALITY
  AS c (document, version, span_start, span_end, sha256, n)
JOIN {documents} d ON d.external_id = c.document AND NOT d.deleted
JOIN {versions} v ON v.document_id = d.id AND v.version = c.version
WHERE length(v.text) >= c.span_end
  AND encode(sha256(convert_to(substr(v.text, c.span_start + 1, c.span_end - c.span_start), 'UTF8')),
             'hex') = c.sha256
"""


async def verified(
    database: Database, index: ServedIndex, citations: Sequence[Citation]
) -> Collection[Citation]:
    """Return those citations whose span of that version holds exactly that text, as it is stored now."""
    if not citations:
        return frozenset()
    text = str(compose(_VERIFY, documents=index.table(names.DOCUMENTS), versions=index.table(names.VERSIONS)))
    async with database.connection("verify") as connection:
        rows = await connection.fetch(
            text,
            [citation.document for citation in citations],
            [citation.version for citation in citations],
            [citation.start for citation in citations],
            [citation.end for citation in citations],
            [citation.sha256 for citation in citations],
        )
    return frozenset(citations[row["n"] - 1] for row in rows)
