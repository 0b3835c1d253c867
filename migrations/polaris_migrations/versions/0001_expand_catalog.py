"""The catalog as it begins.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None

# Attributes of type datetime are compared as instants, in an index too, so the function has to be
# IMMUTABLE; it is: the pattern lets only RFC 3339 with an offset through, which no setting changes.
# The day is added apart, so that 31 February is 3 March and never an error inside an index.
_AS_DATETIME = """
CREATE FUNCTION polaris.as_datetime(value jsonb) RETURNS timestamptz
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
  SELECT CASE
    WHEN jsonb_typeof(value) = 'string' AND value #>> '{}' ~
      '^[1-9][0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?(Z|[+-](0[0-9]|1[0-4]):[0-5][0-9])$'
    THEN overlay(value #>> '{}' placing '01' from 9 for 2)::timestamptz
      + (substr(value #>> '{}', 9, 2)::integer - 1) * interval '24 hours'
  END
$$
"""


def upgrade() -> None:
    """Make the catalog, draw its id, and say that the first code may use it."""
    op.create_table(
        "catalog",
        sa.Column("only", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("oldest_code", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint('"only"', name=op.f("catalog_only_check")),
        sa.PrimaryKeyConstraint("only", name=op.f("catalog_pk")),
        schema="polaris",
    )
    op.create_table(
        "consumers",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("username", sa.String(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("query_url", sa.String(), nullable=True),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("catalog_level", sa.Integer(), nullable=False),
        sa.Column("reported_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("consumers_pk")),
        schema="polaris",
    )
    op.create_table(
        "installations",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("installations_pk")),
        schema="polaris",
    )
    op.create_table(
        "models",
        sa.Column("provider", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("revision", sa.String(), nullable=False),
        sa.Column("reporter", sa.String(), nullable=False),
        sa.Column("dimension", sa.Integer(), nullable=False),
        sa.Column("max_tokens", sa.Integer(), nullable=True),
        sa.Column("reported_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("provider", "model", "revision", "reporter", name=op.f("models_pk")),
        schema="polaris",
    )
    op.create_table(
        "credentials",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("installation_id", sa.UUID(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("group_role", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("username", sa.String(), nullable=True),
        sa.Column("lease_id", sa.String(), nullable=True),
        sa.Column("secret_namespace", sa.String(), nullable=False),
        sa.Column("secret_name", sa.String(), nullable=False),
        sa.Column(
            "requested_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("issued_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("superseded_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("overlap_seconds", sa.Integer(), server_default=sa.text("300"), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state IN ('requested', 'issued', 'published', 'superseded', 'revoked')",
            name=op.f("credentials_state_check"),
        ),
        sa.ForeignKeyConstraint(
            ["installation_id"], ["polaris.installations.id"], name=op.f("credentials_installation_id_fk")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("credentials_pk")),
        sa.UniqueConstraint("owner", "name", "epoch", name=op.f("credentials_owner_name_epoch_key")),
        schema="polaris",
    )
    op.create_table(
        "fences",
        sa.Column("installation_id", sa.UUID(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("holder", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["installation_id"], ["polaris.installations.id"], name=op.f("fences_installation_id_fk")
        ),
        sa.PrimaryKeyConstraint("installation_id", name=op.f("fences_pk")),
        schema="polaris",
    )
    op.create_table(
        "indexes",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("installation_id", sa.UUID(), nullable=False),
        sa.Column("namespace", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("uid", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("deletion_policy", sa.String(), nullable=False),
        sa.Column("schema_name", sa.String(), nullable=False),
        sa.Column("spec", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("object_generation", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("serving", sa.Integer(), nullable=True),
        sa.Column("released_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("state IN ('active', 'released', 'deleting')", name=op.f("indexes_state_check")),
        sa.ForeignKeyConstraint(
            ["installation_id"], ["polaris.installations.id"], name=op.f("indexes_installation_id_fk")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("indexes_pk")),
        sa.UniqueConstraint("namespace", "name", name=op.f("indexes_namespace_name_key")),
        schema="polaris",
    )
    op.create_table(
        "generations",
        sa.Column("index_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("embedding", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("chunking", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("vector_index", sa.String(), nullable=True),
        sa.Column("ef_search", sa.Integer(), server_default=sa.text("64"), nullable=False),
        sa.Column("recall", sa.Double(), nullable=True),
        sa.Column("recall_rows", sa.BigInteger(), nullable=True),
        sa.Column("recall_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("low_water", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("load_requested_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("valid_since", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state IN ('serving', 'loading', 'building')", name=op.f("generations_state_check")
        ),
        sa.ForeignKeyConstraint(
            ["index_id"], ["polaris.indexes.id"], name=op.f("generations_index_id_fk"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("index_id", "number", name=op.f("generations_pk")),
        schema="polaris",
    )
    op.execute(_AS_DATETIME)
    op.execute(
        "INSERT INTO polaris.catalog (id, oldest_code)"
        " VALUES (substr(replace(gen_random_uuid()::text, '-', ''), 1, 8), 1)"
    )


def downgrade() -> None:
    """Remove the catalog; the indexes' own schemas stay."""
    op.execute("DROP FUNCTION polaris.as_datetime(jsonb)")
    for table in (
        "generations",
        "indexes",
        "fences",
        "credentials",
        "models",
        "installations",
        "consumers",
        "catalog",
    ):
        op.drop_table(table, schema="polaris")
