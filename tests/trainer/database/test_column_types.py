"""What a column cannot hold is refused in words, by the type of every column, alike on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from dipole.database import column_types
from dipole.errors import InvalidInput
from dipole_trainer.database.engine import Database, upgrade_database
from dipole_trainer.database.tables import Base, CheckpointRow, EventRow, FileRow, JobRow


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path}/jobs.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    upgrade_database(url)
    found = Database(url)
    yield found
    found.close()


def test_every_column_of_text_or_whole_numbers_is_checked() -> None:
    """A new column with a plain type would be one more 500 that a caller can cause."""
    checked = (column_types._CheckedText, column_types._CheckedInteger)
    for table in Base.metadata.tables.values():
        for column in table.columns:
            if isinstance(column.type, sa.JSON | sa.Float):
                continue
            assert isinstance(column.type, checked), column


@pytest.mark.parametrize("value", ["a\x00b", "\x00", "half \ud800 pair", "x" * 65])
def test_texts_that_cannot_be_stored_are_refused_in_lookups_too(database: Database, value: str) -> None:
    with database.reading() as session, pytest.raises(InvalidInput, match="a text"):
        session.scalar(sa.select(JobRow).where(JobRow.id == value))
    with database.writing() as session, pytest.raises(InvalidInput, match="a text"):
        session.execute(sa.update(JobRow).values(worker=value * 64))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (JobRow.steps, 2**31),
        (JobRow.step, -(2**31) - 1),
        (CheckpointRow.step, 2**31),
        (FileRow.lines, 2**31),
        (FileRow.bytes, 2**63),
        (EventRow.id, 2**63),
        (EventRow.id, 10**400),
    ],
)
def test_numbers_of_more_bits_are_refused(database: Database, column: Any, value: int) -> None:
    with database.reading() as session, pytest.raises(InvalidInput, match="does not fit"):
        session.scalar(sa.select(column).where(column == value))


def test_the_largest_numbers_and_longest_texts_pass(database: Database) -> None:
    with database.reading() as session:
        assert session.scalar(sa.select(JobRow.id).where(JobRow.steps == 2**31 - 1)) is None
        assert session.scalar(sa.select(EventRow.id).where(EventRow.id == 2**63 - 1)) is None
        assert session.scalar(sa.select(JobRow.id).where(JobRow.id == "é" * 64)) is None
