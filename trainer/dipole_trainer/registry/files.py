"""Uploaded files of prompts and pairs: their rows. A file's bytes are an artifact; an expired one is not there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sqlalchemy import delete, or_, select

from dipole.database.queries import database_time, page_of_rows, require
from dipole.errors import Conflict
from dipole_trainer.database.engine import Database, Session, now
from dipole_trainer.database.tables import ACTIVE_STATES, FileRow, JobRow

FileKind = Literal["prompts", "pairs"]
_IS_KEPT = or_(FileRow.expires_at.is_(None), FileRow.expires_at > now())


class FileRegistry:
    """The rows of uploaded files, over one Database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def add_file(
        self,
        file_id: str,
        filename: str,
        *,
        size: int,
        lines: int,
        sha256: str,
        kind: FileKind = "prompts",
        expires_after_s: int | None = None,
    ) -> FileRow:
        row = FileRow(
            id=file_id, filename=filename, purpose="fine-tune", bytes=size, lines=lines, sha256=sha256, kind=kind
        )
        with self.database.writing() as session:
            row.created_at = database_time(session)
            if expires_after_s is not None:
                row.expires_at = row.created_at + expires_after_s
            session.add(row)
        return row

    def get_file(self, file_id: str) -> FileRow:
        with self.database.reading() as session:
            return require(session.scalar(select(FileRow).where(FileRow.id == file_id, _IS_KEPT)), file_id, "file")

    def list_files(
        self, *, after: str | None = None, limit: int = 100, newest_first: bool = True
    ) -> tuple[Sequence[FileRow], bool]:
        query = select(FileRow).where(_IS_KEPT).order_by(FileRow.seq.desc() if newest_first else FileRow.seq)
        with self.database.reading() as session:
            if after is not None:
                seen = require(session.scalar(select(FileRow.seq).where(FileRow.id == after)), after, "file")
                query = query.where(FileRow.seq < seen if newest_first else FileRow.seq > seen)
            return page_of_rows(session.scalars(query.limit(limit + 1)).all(), limit)

    def delete_file(self, file_id: str) -> None:
        """Jobs keep their own copy of prompts, but read pairs while they train. Raises Conflict while one does."""
        with self.database.writing() as session:
            if (job := _job_on_pairs(session, file_id)) is not None:
                raise Conflict(f"file {file_id} is trained on by job {job.id}, which is {job.state}: cancel it first")
            require(session.scalar(delete(FileRow).where(FileRow.id == file_id).returning(FileRow.id)), file_id, "file")

    def delete_expired_files(self) -> list[str]:
        """The ids of those that went. Pairs that a job still trains on go later; nobody else finds them."""
        with self.database.writing() as session:
            expired = session.scalars(select(FileRow.id).where(FileRow.expires_at <= now())).all()
            gone = [file_id for file_id in expired if _job_on_pairs(session, file_id) is None]
            session.execute(delete(FileRow).where(FileRow.id.in_(gone)))
        return gone


def _job_on_pairs(session: Session, file_id: str) -> JobRow | None:
    """A job that reads these pairs while it trains."""
    active = select(JobRow).where(JobRow.state.in_(ACTIVE_STATES), JobRow.training_file == file_id)
    return next((job for job in session.scalars(active) if job.summary.get("pairs_file") == file_id), None)
