"""What workers say of themselves: Dipole's version, and the tiny decoders that they have"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("version", sa.String(length=64), nullable=True))
    op.add_column("workers", sa.Column("decoders", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    op.drop_column("workers", "decoders")
    op.drop_column("workers", "version")
