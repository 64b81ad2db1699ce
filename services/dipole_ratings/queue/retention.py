"""What is kept, and for how long: finished tasks go after `ratings_retention_days`, with their images and answers."""

from __future__ import annotations

from sqlalchemy import delete, exists, select

from dipole_ratings.database.tables import ImageRow, ShownImageRow, TaskImageRow, TaskRow
from dipole_ratings.queue.context import QueueContext
from dipole_ratings.queue.raters import DAY_S

BATCH = 100


def drop_old_tasks(context: QueueContext) -> int:
    """Delete a batch of them and the images that no task has any more; how many tasks."""
    with context.database.writing() as session:
        oldest = context.clock(session) - context.settings.ratings_retention_days * DAY_S
        query = select(TaskRow.seq).where(TaskRow.finished_at < oldest).order_by(TaskRow.seq).limit(BATCH)
        found = session.scalars(query.with_for_update(skip_locked=True)).all()
        if not found:
            return 0
        session.execute(delete(TaskRow).where(TaskRow.seq.in_(found)))
        unused = (
            ~exists().where(TaskImageRow.sha256 == ImageRow.sha256),
            ~exists().where(ShownImageRow.sha256 == ImageRow.sha256),
        )
        session.execute(delete(ImageRow).where(*unused))
        return len(found)
