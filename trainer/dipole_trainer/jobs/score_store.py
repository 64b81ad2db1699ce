"""The score cache's table: answers of deterministic rewards by key, bounded in number and in age.

What is found or not changes no job's outcome, only whom it asks. So a database that is away or full is as good as an
empty table: nothing is raised, and it is left alone for PAUSE_S.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import structlog
from sqlalchemy import Table, delete, func, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from dipole.database.failures import describe_database_error
from dipole_trainer.database.engine import Database, now
from dipole_trainer.database.tables import CachedScoresRow
from dipole_trainer.jsonable import to_jsonable

log = structlog.get_logger()

MAX_AGE_S = 30 * 24 * 3600
ROWS_BETWEEN_SWEEPS = 500
PAUSE_S = 30.0


class SqlScoreStore:
    """ranking.score_cache.ScoreStore over one Database. At most about `max_rows` answers are kept, the newest."""

    def __init__(self, database: Database, max_rows: int) -> None:
        self.database, self._max_rows = database, max_rows
        self._kept = 0  # since the last sweep
        self._paused_until = 0.0

    def find_answer(self, key: str) -> Mapping[str, Any] | None:
        if time.monotonic() < self._paused_until:
            return None
        fresh = CachedScoresRow.created_at > now() - MAX_AGE_S
        try:
            with self.database.reading() as session:
                return session.scalar(select(CachedScoresRow.answer).where(CachedScoresRow.key == key, fresh))
        except SQLAlchemyError as error:
            self._pause(error)
            return None

    def keep_answer(self, key: str, answer: Mapping[str, Any]) -> None:
        if time.monotonic() < self._paused_until:
            return
        dialect = sqlite if self.database.is_sqlite() else postgresql
        assert isinstance(CachedScoresRow.__table__, Table)
        values = {"answer": to_jsonable(answer), "created_at": now()}
        insert = dialect.insert(CachedScoresRow.__table__).values(key=key, **values)
        try:
            with self.database.writing() as session:
                session.execute(insert.on_conflict_do_update(index_elements=["key"], set_=values))
        except SQLAlchemyError as error:
            self._pause(error)
            return
        self._kept += 1
        if self._kept >= min(ROWS_BETWEEN_SWEEPS, self._max_rows):
            self.sweep()

    def sweep(self) -> None:
        """Delete what is too old, and the oldest of what is too much."""
        self._kept = 0
        try:
            with self.database.writing() as session:
                newest = session.scalar(select(func.max(CachedScoresRow.seq))) or 0
                surplus = CachedScoresRow.seq <= newest - self._max_rows
                session.execute(
                    delete(CachedScoresRow).where(or_(surplus, CachedScoresRow.created_at <= now() - MAX_AGE_S))
                )
        except SQLAlchemyError as error:
            self._pause(error)

    def _pause(self, error: SQLAlchemyError) -> None:
        log.warning("score_cache_unreachable", error=describe_database_error(error), pause_s=PAUSE_S)
        self._paused_until = time.monotonic() + PAUSE_S
