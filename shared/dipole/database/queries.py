"""Small queries that every store asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from dipole.database.engine import now
from dipole.errors import NotFound

T = TypeVar("T")


def database_time(session: Session) -> float:
    return float(session.scalar(select(now())) or 0.0)


def require(value: T | None, name: str, what: str = "job") -> T:
    if value is None:
        raise NotFound(f"there is no {what} {name}")
    return value


def page_of_rows(rows: Sequence[T], limit: int) -> tuple[Sequence[T], bool]:
    """`limit` rows of `limit + 1` asked for, and whether there are more."""
    return rows[:limit], len(rows) > limit
