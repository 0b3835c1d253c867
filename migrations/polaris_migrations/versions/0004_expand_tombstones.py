"""A deleted index is kept for a while in case that was a mistake: the catalog says until when.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the column. To code that does not know it a tombstone is an index that nobody takes up."""
    op.add_column(
        "indexes", sa.Column("drop_after", sa.DateTime(timezone=True), nullable=True), schema="polaris"
    )
    op.alter_column("catalog", "level", server_default="4", schema="polaris")
    op.execute("UPDATE polaris.catalog SET level = 4")


def downgrade() -> None:
    """Take it away. What waits for its end is removed by older code as soon as that looks."""
    op.execute(
        "UPDATE polaris.indexes SET state = 'deleting', released_at = NULL"
        " WHERE state = 'released' AND drop_after IS NOT NULL"
    )
    op.drop_column("indexes", "drop_after", schema="polaris")
    op.alter_column("catalog", "level", server_default="3", schema="polaris")
    op.execute("UPDATE polaris.catalog SET level = 3")
