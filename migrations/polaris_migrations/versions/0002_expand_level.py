"""The catalog says which level it has reached.

Code that needs a newer one can tell, and waits to be sent requests until the migration has come.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the column; each migration from here on writes its own number into it."""
    op.add_column(
        "catalog", sa.Column("level", sa.Integer(), server_default="2", nullable=False), schema="polaris"
    )


def downgrade() -> None:
    """Remove it: a catalog that doesn't say is of level 1."""
    op.drop_column("catalog", "level", schema="polaris")
