"""Indexes by which pages find a job's figures and a step's groups without reading the rest of its history"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_events_job_id_kind_id", "events", ["job_id", "kind", "id"])
    op.create_index("ix_ranked_groups_job_id_step_seq", "ranked_groups", ["job_id", "step", "seq"])


def downgrade() -> None:
    op.drop_index("ix_ranked_groups_job_id_step_seq", "ranked_groups")
    op.drop_index("ix_events_job_id_kind_id", "events")
