"""Scores that are kept for equal groups of other jobs"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "cached_scores",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("answer", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_cached_scores")),
        sa.UniqueConstraint("key", name=op.f("uq_cached_scores_key")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_cached_scores_created_at"), "cached_scores", ["created_at"])


def downgrade() -> None:
    op.drop_table("cached_scores")
