"""An index may have several generations: which one has served, and what a candidate was found to be.

Revision ID: 0003
Revises: 0002
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"

_COLUMNS: dict[str, sa.types.TypeEngine[Any]] = {
    "index": postgresql.JSONB(),
    "superseded_at": sa.DateTime(timezone=True),
    "verified_at": sa.DateTime(timezone=True),
    "verified": postgresql.JSONB(),
}


def upgrade() -> None:
    """Add the columns. Code that does not know them leaves them NULL, and goes on as before."""
    for name, kind in _COLUMNS.items():
        op.add_column("generations", sa.Column(name, kind, nullable=True), schema="polaris")
    op.add_column(
        "indexes",
        sa.Column("last_generation", sa.Integer(), server_default="1", nullable=False),
        schema="polaris",
    )
    op.alter_column("catalog", "level", server_default="3", schema="polaris")
    op.execute("UPDATE polaris.catalog SET level = 3")


def downgrade() -> None:
    """Take them away. What does not serve is forgotten: its tables stay until newer code collects them."""
    op.execute(
        "DELETE FROM polaris.generations g USING polaris.indexes i"
        " WHERE i.id = g.index_id AND g.number <> i.serving"
    )
    op.drop_column("indexes", "last_generation", schema="polaris")
    for name in reversed(_COLUMNS):
        op.drop_column("generations", name, schema="polaris")
    op.alter_column("catalog", "level", server_default="2", schema="polaris")
    op.execute("UPDATE polaris.catalog SET level = 2")
