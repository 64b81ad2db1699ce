"""Uploaded files of prompts and pairs: their rows. A file's bytes are an artifact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sqlalchemy import delete, select

from dipole.errors import Conflict
from dipole_trainer.database.engine import Database
from dipole_trainer.database.queries import found, page, time_of
from dipole_trainer.database.tables import ACTIVE, File, Job

FileKind = Literal["prompts", "pairs"]


class FileRegistry:
    """The rows of uploaded files, over one Database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def add_file(
        self, file_id: str, filename: str, *, size: int, lines: int, sha256: str, kind: FileKind = "prompts"
    ) -> File:
        row = File(
            id=file_id, filename=filename, purpose="fine-tune", bytes=size, lines=lines, sha256=sha256, kind=kind
        )
        with self.database.writing() as session:
            row.created_at = time_of(session)
            session.add(row)
        return row

    def file(self, file_id: str) -> File:
        with self.database.reading() as session:
            return found(session.scalar(select(File).where(File.id == file_id)), file_id, "file")

    def files(
        self, *, after: str | None = None, limit: int = 100, newest_first: bool = True
    ) -> tuple[Sequence[File], bool]:
        query = select(File).order_by(File.seq.desc() if newest_first else File.seq)
        with self.database.reading() as session:
            if after is not None:
                seen = found(session.scalar(select(File.seq).where(File.id == after)), after, "file")
                query = query.where(File.seq < seen if newest_first else File.seq > seen)
            return page(session.scalars(query.limit(limit + 1)).all(), limit)

    def delete_file(self, file_id: str) -> None:
        """Jobs keep their own copy of prompts, but read pairs while they train. Raises Conflict while one does."""
        with self.database.writing() as session:
            active = select(Job).where(Job.state.in_(ACTIVE), Job.training_file == file_id)
            for job in session.scalars(active):
                if job.summary.get("pairs_file") == file_id:
                    raise Conflict(
                        f"file {file_id} is trained on by job {job.id}, which is {job.state}: cancel it first"
                    )
            found(session.scalar(delete(File).where(File.id == file_id).returning(File.id)), file_id, "file")
