"""Alembic's entry: runs the migrations on the connection that `polaris_migrations.run` hands over."""

from __future__ import annotations

from alembic import context

from polaris.catalog import Base
from polaris.names import CATALOG_SCHEMA

_common = {
    "target_metadata": Base.metadata,
    "version_table_schema": CATALOG_SCHEMA,
    "include_schemas": True,
    "include_name": lambda name, kind, _: kind != "schema" or name == CATALOG_SCHEMA,
}

if context.is_offline_mode():
    context.configure(dialect_name="postgresql", as_sql=True, **_common)  # type: ignore[arg-type]
    with context.begin_transaction():
        context.run_migrations()
else:
    context.configure(connection=context.config.attributes["connection"], **_common)  # type: ignore[arg-type]
    with context.begin_transaction():
        context.run_migrations()
