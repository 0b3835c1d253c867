"""What is known of recall beyond one number, and vectors of real questions to measure it with.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, REAL

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the column and the table. Code that does not know them measures as it did."""
    op.add_column("generations", sa.Column("recall_details", JSONB(), nullable=True), schema="polaris")
    op.create_table(
        "query_vectors",
        sa.Column("index_id", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("generation", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("slot", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("vector", ARRAY(REAL()), nullable=False),
        sa.PrimaryKeyConstraint("index_id", "generation", "slot", name=op.f("query_vectors_pk")),
        sa.ForeignKeyConstraint(
            ["index_id", "generation"],
            ["polaris.generations.index_id", "polaris.generations.number"],
            name=op.f("query_vectors_index_id_generation_fk"),
            ondelete="CASCADE",
        ),
        sa.CheckConstraint("slot BETWEEN 0 AND 63", name=op.f("query_vectors_slot_check")),
        schema="polaris",
    )
    op.alter_column("catalog", "level", server_default="5", schema="polaris")
    op.execute("UPDATE polaris.catalog SET level = 5")


def downgrade() -> None:
    """Take them away: older code measures by the rows alone."""
    op.drop_table("query_vectors", schema="polaris")
    op.drop_column("generations", "recall_details", schema="polaris")
    op.alter_column("catalog", "level", server_default="4", schema="polaris")
    op.execute("UPDATE polaris.catalog SET level = 4")
