"""What an index looks like in PostgreSQL: the one description that both sides go by.

The operator makes it so and compares it with the catalogs of PostgreSQL; the service writes its
statements against it. Everything of one index stands in a schema of its own:

==========================  ========================================================================
`stored_documents`          one row a document: external id, present version, sequence
`stored_versions`           one row a version: text, title, uri, attributes; the truth
`clock`                     one row: the last sequence given out, in the order of commits
`g<n>_chunks`               generation n: spans, attributes and vectors
`g<n>_applied`              generation n: which version of each document it has applied
`documents`, `chunks`       views for those who read with SQL; they keep their shape
==========================  ========================================================================

A document is **behind** in a generation where its sequence is greater than what that generation has
applied or given up on. Ingest, retry, backfill and "how much is pending" are that one comparison.

The embedding column is stored inline while a row fits a page (an exact scan of 2,000 rows: 3.1 ms
inline, 15.5 ms out of line), and text stays out of that table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from polaris import names
from polaris.attributes import expression
from polaris.spec import Attribute, Embedding, IndexType, Metric, VectorIndex, VectorType
from polaris.sql import Sql, compose, identifier, join

# Bytes of a page that a row can use, less what our other columns take.
_INLINE_BYTES = 7200


@dataclass(frozen=True)
class Column:
    """A column: its name, its type as `format_type` prints it, and what follows in the definition."""

    name: str
    type: str
    constraint: str = ""

    @property
    def not_null(self) -> bool:
        """Whether NULL is refused (identity columns refuse it too)."""
        return "NOT NULL" in self.constraint or "IDENTITY" in self.constraint


@dataclass(frozen=True)
class Table:
    """A table: its columns, its key, and what else constrains it."""

    name: str
    columns: tuple[Column, ...]
    primary_key: tuple[str, ...]
    constraints: tuple[str, ...] = ()

    def create(self, schema: str) -> Sql:
        """Return the CREATE TABLE statement."""
        key = compose("PRIMARY KEY ({columns})", columns=_list(self.primary_key))
        lines = [Sql(f"{identifier(c.name)} {c.type} {c.constraint}".rstrip()) for c in self.columns]
        return compose(
            "CREATE TABLE {table} ({body})",
            table=identifier(schema, self.name),
            body=join(", ", [*lines, *map(Sql, self.constraints), key]),
        )


@dataclass(frozen=True)
class Index:
    """An index: its name and the statement that makes it, without the word CONCURRENTLY."""

    name: str
    table: str
    body: Sql

    def create(self, schema: str, *, concurrently: bool = False) -> Sql:
        """Return the CREATE INDEX statement; `IF NOT EXISTS` is banned, it says nothing of an INVALID one."""
        return compose(
            "CREATE INDEX {concurrently}{name} ON {table} {body}",
            concurrently=Sql("CONCURRENTLY " if concurrently else ""),
            name=identifier(self.name),
            table=identifier(schema, self.table),
            body=self.body,
        )


def _list(names_: Sequence[str]) -> Sql:
    return join(", ", [identifier(name) for name in names_])


STORED_DOCUMENTS = Table(
    names.DOCUMENTS,
    (
        Column("id", "bigint", "GENERATED ALWAYS AS IDENTITY"),
        Column("external_id", "text", 'COLLATE "C" NOT NULL UNIQUE'),
        Column("version", "integer", "NOT NULL"),
        Column("sequence", "bigint", "NOT NULL"),
        Column("content_hash", "bytea", "NOT NULL"),
        Column("deleted", "boolean", "NOT NULL DEFAULT false"),
        Column("updated_at", "timestamp with time zone", "NOT NULL DEFAULT now()"),
    ),
    ("id",),
)
STORED_VERSIONS = Table(
    names.VERSIONS,
    (
        Column("document_id", "bigint", "NOT NULL"),
        Column("version", "integer", "NOT NULL"),
        Column("sequence", "bigint", "NOT NULL"),
        Column("content_hash", "bytea", "NOT NULL"),
        Column("deleted", "boolean", "NOT NULL DEFAULT false"),
        Column("text", "text", "NOT NULL"),
        Column("title", "text"),
        Column("uri", "text"),
        Column("attributes", "jsonb", "NOT NULL DEFAULT '{}'"),
        Column("created_at", "timestamp with time zone", "NOT NULL DEFAULT now()"),
    ),
    ("document_id", "version"),
)
CLOCK = Table(
    names.CLOCK,
    (
        Column("only", "boolean", "NOT NULL DEFAULT true"),
        Column("sequence", "bigint", "NOT NULL DEFAULT 0"),
    ),
    ("only",),
    ('CHECK ("only")',),
)
DOCUMENTS_BY_SEQUENCE = Index("stored_documents_by_sequence", names.DOCUMENTS, Sql("USING btree (sequence)"))


def chunks(generation: int, embedding: Embedding) -> Table:
    """Return the table of a generation's chunks. Spans count code points of the version's text."""
    vector = f"{embedding.type.value}({embedding.dimension})"
    return Table(
        names.chunks_table(generation),
        (
            Column("document_id", "bigint", "NOT NULL"),
            Column("version", "integer", "NOT NULL"),
            Column("ordinal", "integer", "NOT NULL"),
            Column("span_start", "integer", "NOT NULL"),
            Column("span_end", "integer", "NOT NULL"),
            # SHA-256 of what was embedded: the same text is not embedded again.
            Column("text_hash", "bytea", "NOT NULL"),
            Column("attributes", "jsonb", "NOT NULL DEFAULT '{}'"),
            Column("embedding", vector, "NOT NULL"),
        ),
        ("document_id", "ordinal"),
    )


def applied(generation: int) -> Table:
    """Return the table of what a generation has applied, one row a document that it has seen."""
    return Table(
        names.applied_table(generation),
        (
            Column("document_id", "bigint", "NOT NULL"),
            # What is searchable: 0 before the first version.
            Column("version", "integer", "NOT NULL DEFAULT 0"),
            Column("sequence", "bigint", "NOT NULL DEFAULT 0"),
            Column("chunks", "integer", "NOT NULL DEFAULT 0"),
            # What was given up on, after `tries` tries; a newer sequence is tried again.
            Column("failed_sequence", "bigint", "NOT NULL DEFAULT 0"),
            Column("tries", "integer", "NOT NULL DEFAULT 0"),
            Column("error", "text"),
            Column("next_try_at", "timestamp with time zone"),
            Column("applied_at", "timestamp with time zone"),
        ),
        ("document_id",),
    )


def embedding_storage(embedding: Embedding) -> str:
    """Return the storage of the embedding column: PLAIN (inline) while a row fits a page."""
    width = 2 if embedding.type == VectorType.HALFVEC else 4
    return "PLAIN" if embedding.dimension * width <= _INLINE_BYTES else "EXTERNAL"


def set_embedding_storage(schema: str, generation: int, embedding: Embedding) -> Sql:
    """Return the statement that sets the storage of the embedding column."""
    return compose(
        "ALTER TABLE {table} ALTER COLUMN embedding SET STORAGE {storage}",
        table=identifier(schema, names.chunks_table(generation)),
        storage=Sql(embedding_storage(embedding)),
    )


_OPCLASS = {Metric.COSINE: "cosine_ops", Metric.L2: "l2_ops", Metric.IP: "ip_ops"}
DISTANCE_OPERATOR = {Metric.COSINE: Sql("<=>"), Metric.L2: Sql("<->"), Metric.IP: Sql("<#>")}


def operator_class(embedding: Embedding) -> str:
    """Return pgvector's operator class for the column's type and metric."""
    return f"{embedding.type.value}_{_OPCLASS[embedding.metric]}"


def index_parameters(embedding: Embedding, index: VectorIndex) -> dict[str, Any]:
    """Return all that makes one vector index different from another."""
    return {
        "type": index.type.value,
        "opclass": operator_class(embedding),
        "m": index.m,
        "ef_construction": index.ef_construction,
    }


def vector_index(generation: int, embedding: Embedding, index: VectorIndex) -> Index | None:
    """Return the vector index; None where search is exact by the spec."""
    if index.type == IndexType.EXACT:
        return None
    return Index(
        names.vector_index(generation, index_parameters(embedding, index)),
        names.chunks_table(generation),
        compose(
            "USING hnsw (embedding {opclass}) WITH (m = {m}, ef_construction = {ef})",
            opclass=identifier(operator_class(embedding)),
            m=index.m,
            ef=index.ef_construction,
        ),
    )


def attribute_index(generation: int, attribute: Attribute) -> Index:
    """Return the index of one attribute, on the expression that filters use."""
    return Index(
        names.attribute_index(generation, attribute.name, attribute.type.value),
        names.chunks_table(generation),
        compose("USING btree ({expression})", expression=expression(attribute.name, attribute.type)),
    )


def documents_view(schema: str) -> Sql:
    """Return the statement that makes the view of present documents."""
    return compose(
        "CREATE OR REPLACE VIEW {view} AS"
        " SELECT d.external_id AS document, d.version, v.title, v.uri, v.text, v.attributes,"
        " d.updated_at FROM {documents} d"
        " JOIN {versions} v ON v.document_id = d.id AND v.version = d.version WHERE NOT d.deleted",
        view=identifier(schema, names.DOCUMENTS_VIEW),
        documents=identifier(schema, names.DOCUMENTS),
        versions=identifier(schema, names.VERSIONS),
    )


def chunks_view(schema: str, generation: int) -> Sql:
    """Return the statement that makes the view of the serving generation's chunks."""
    return compose(
        "CREATE OR REPLACE VIEW {view} AS"
        " SELECT d.external_id AS document, c.version, c.ordinal AS chunk, c.span_start, c.span_end,"
        " substr(v.text, c.span_start + 1, c.span_end - c.span_start) AS text,"
        " c.attributes, c.embedding, {generation} AS generation"
        " FROM {chunks} c JOIN {documents} d ON d.id = c.document_id"
        " JOIN {versions} v ON v.document_id = c.document_id AND v.version = c.version",
        view=identifier(schema, names.CHUNKS_VIEW),
        generation=generation,
        chunks=identifier(schema, names.chunks_table(generation)),
        documents=identifier(schema, names.DOCUMENTS),
        versions=identifier(schema, names.VERSIONS),
    )


BEHIND = Sql("(d.sequence > greatest(a.sequence, a.failed_sequence, 0))")
"""Whether document `d` waits to be applied: what its row `a` of the generation, where there is one, has
neither applied nor given up. Looked for only above the generation's `low_water`."""


def start_clock(schema: str) -> Sql:
    """Return the statement that puts the one row into the clock.

    A clock that was lost goes on where it was: no sequence is given out twice.
    """
    return compose(
        "INSERT INTO {clock} (sequence) SELECT coalesce(max(sequence), 0) FROM {documents}",
        clock=identifier(schema, names.CLOCK),
        documents=identifier(schema, names.DOCUMENTS),
    )


__all__ = [
    "BEHIND",
    "CLOCK",
    "DISTANCE_OPERATOR",
    "DOCUMENTS_BY_SEQUENCE",
    "STORED_DOCUMENTS",
    "STORED_VERSIONS",
    "Column",
    "Index",
    "Table",
    "applied",
    "attribute_index",
    "chunks",
    "chunks_view",
    "documents_view",
    "embedding_storage",
    "index_parameters",
    "operator_class",
    "set_embedding_storage",
    "start_clock",
    "vector_index",
]
