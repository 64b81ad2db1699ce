"""The first tables"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "images",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("png", sa.LargeBinary(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_images")),
    )
    op.create_table(
        "job_priorities",
        sa.Column("job", sa.String(length=128), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("job", name=op.f("pk_job_priorities")),
    )
    op.create_table(
        "raters",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("pseudonym", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=True),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("weight", sa.Float(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("last_seen", sa.Float(), nullable=True),
        sa.Column("deleted_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_raters")),
        sa.UniqueConstraint("pseudonym", name=op.f("uq_raters_pseudonym")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "tasks",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("job", sa.String(length=128), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("instructions", sa.Text(), nullable=True),
        sa.Column("candidates", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("content", sa.String(length=64), nullable=False),
        sa.Column("min_ratings", sa.Integer(), nullable=False),
        sa.Column("max_ratings", sa.Integer(), nullable=False),
        sa.Column("target", sa.Integer(), nullable=False),
        sa.Column("deadline", sa.Float(), nullable=False),
        sa.Column("on_timeout", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("complete_at", sa.Float(), nullable=True),
        sa.Column("scores", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("code", sa.String(length=32), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("agreement", sa.Float(), nullable=True),
        sa.Column("ratings", sa.Integer(), nullable=False),
        sa.Column("reused", sa.Boolean(), nullable=False),
        sa.Column("callback_url", sa.String(length=2048), nullable=True),
        sa.Column("idempotency_key", sa.String(length=255), nullable=True),
        sa.Column("request_digest", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("finished_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_tasks")),
        sa.UniqueConstraint("id", name=op.f("uq_tasks_id")),
        sa.UniqueConstraint("idempotency_key", name=op.f("uq_tasks_idempotency_key")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("tasks", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_tasks_complete_at"), ["complete_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_tasks_content"), ["content"], unique=False)
        batch_op.create_index(batch_op.f("ix_tasks_finished_at"), ["finished_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_tasks_job"), ["job"], unique=False)
        batch_op.create_index("ix_tasks_state_priority_seq", ["state", "priority", "seq"], unique=False)

    op.create_table(
        "deliveries",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("task_seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("url", sa.String(length=2048), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_at", sa.Float(), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("delivered_at", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(
            ["task_seq"], ["tasks.seq"], name=op.f("fk_deliveries_task_seq_tasks"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_deliveries")),
        sa.UniqueConstraint("id", name=op.f("uq_deliveries_id")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("deliveries", schema=None) as batch_op:
        batch_op.create_index("ix_deliveries_state_next_at", ["state", "next_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_deliveries_task_seq"), ["task_seq"], unique=False)

    op.create_table(
        "invitations",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("rater_seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=True),
        sa.Column("revoked_at", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(
            ["rater_seq"], ["raters.seq"], name=op.f("fk_invitations_rater_seq_raters"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_invitations")),
        sa.UniqueConstraint("sha256", name=op.f("uq_invitations_sha256")),
    )
    with op.batch_alter_table("invitations", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_invitations_rater_seq"), ["rater_seq"], unique=False)

    op.create_table(
        "subsets",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("task_seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("positions", sa.JSON(none_as_null=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["task_seq"], ["tasks.seq"], name=op.f("fk_subsets_task_seq_tasks"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_subsets")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("subsets", schema=None) as batch_op:
        batch_op.create_index("ix_subsets_task_seq", ["task_seq"], unique=False)

    op.create_table(
        "task_images",
        sa.Column(
            "task_seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["sha256"], ["images.sha256"], name=op.f("fk_task_images_sha256_images")),
        sa.ForeignKeyConstraint(
            ["task_seq"], ["tasks.seq"], name=op.f("fk_task_images_task_seq_tasks"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("task_seq", "position", name=op.f("pk_task_images")),
    )
    with op.batch_alter_table("task_images", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_task_images_sha256"), ["sha256"], unique=False)

    op.create_table(
        "leases",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("subset_seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("rater_seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("purpose", sa.String(length=16), nullable=False),
        sa.Column("granted_at", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(
            ["rater_seq"], ["raters.seq"], name=op.f("fk_leases_rater_seq_raters"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["subset_seq"], ["subsets.seq"], name=op.f("fk_leases_subset_seq_subsets"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_leases")),
        sa.UniqueConstraint("id", name=op.f("uq_leases_id")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("leases", schema=None) as batch_op:
        batch_op.create_index("ix_leases_rater_seq_ended_at", ["rater_seq", "ended_at"], unique=False)
        batch_op.create_index("ix_leases_subset_seq", ["subset_seq"], unique=False)

    op.create_table(
        "sessions",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("rater_seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("invitation_id", sa.String(length=64), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["invitation_id"],
            ["invitations.id"],
            name=op.f("fk_sessions_invitation_id_invitations"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["rater_seq"], ["raters.seq"], name=op.f("fk_sessions_rater_seq_raters"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_sessions")),
    )
    with op.batch_alter_table("sessions", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_sessions_invitation_id"), ["invitation_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_sessions_rater_seq"), ["rater_seq"], unique=False)

    op.create_table(
        "answers",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("lease_seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("subset_seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("rater_seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("purpose", sa.String(length=16), nullable=False),
        sa.Column("verdict", sa.String(length=16), nullable=False),
        sa.Column("tiers", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("skip_reason", sa.Text(), nullable=True),
        sa.Column("dwell_ms", sa.BigInteger(), nullable=True),
        sa.Column("counted", sa.Boolean(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("idempotency_key", sa.String(length=255), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("undone_at", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(
            ["lease_seq"], ["leases.seq"], name=op.f("fk_answers_lease_seq_leases"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["rater_seq"], ["raters.seq"], name=op.f("fk_answers_rater_seq_raters"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["subset_seq"], ["subsets.seq"], name=op.f("fk_answers_subset_seq_subsets"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_answers")),
        sa.UniqueConstraint("id", name=op.f("uq_answers_id")),
        sa.UniqueConstraint("lease_seq", "revision", name=op.f("uq_answers_lease_seq_revision")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("answers", schema=None) as batch_op:
        batch_op.create_index("ix_answers_rater_seq_created_at", ["rater_seq", "created_at"], unique=False)
        batch_op.create_index("ix_answers_subset_seq", ["subset_seq"], unique=False)

    op.create_table(
        "shown_images",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("lease_seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["lease_seq"], ["leases.seq"], name=op.f("fk_shown_images_lease_seq_leases"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["sha256"], ["images.sha256"], name=op.f("fk_shown_images_sha256_images")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_shown_images")),
        sa.UniqueConstraint("lease_seq", "place", name=op.f("uq_shown_images_lease_seq_place")),
    )
    with op.batch_alter_table("shown_images", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_shown_images_sha256"), ["sha256"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("shown_images", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_shown_images_sha256"))

    op.drop_table("shown_images")
    with op.batch_alter_table("answers", schema=None) as batch_op:
        batch_op.drop_index("ix_answers_subset_seq")
        batch_op.drop_index("ix_answers_rater_seq_created_at")

    op.drop_table("answers")
    with op.batch_alter_table("sessions", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_sessions_rater_seq"))
        batch_op.drop_index(batch_op.f("ix_sessions_invitation_id"))

    op.drop_table("sessions")
    with op.batch_alter_table("leases", schema=None) as batch_op:
        batch_op.drop_index("ix_leases_subset_seq")
        batch_op.drop_index("ix_leases_rater_seq_ended_at")

    op.drop_table("leases")
    with op.batch_alter_table("task_images", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_task_images_sha256"))

    op.drop_table("task_images")
    with op.batch_alter_table("subsets", schema=None) as batch_op:
        batch_op.drop_index("ix_subsets_task_seq")

    op.drop_table("subsets")
    with op.batch_alter_table("invitations", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_invitations_rater_seq"))

    op.drop_table("invitations")
    with op.batch_alter_table("deliveries", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_deliveries_task_seq"))
        batch_op.drop_index("ix_deliveries_state_next_at")

    op.drop_table("deliveries")
    with op.batch_alter_table("tasks", schema=None) as batch_op:
        batch_op.drop_index("ix_tasks_state_priority_seq")
        batch_op.drop_index(batch_op.f("ix_tasks_job"))
        batch_op.drop_index(batch_op.f("ix_tasks_finished_at"))
        batch_op.drop_index(batch_op.f("ix_tasks_content"))
        batch_op.drop_index(batch_op.f("ix_tasks_complete_at"))

    op.drop_table("tasks")
    op.drop_table("raters")
    op.drop_table("job_priorities")
    op.drop_table("images")
