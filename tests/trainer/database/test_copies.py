"""A database copied to another: SQLite to PostgreSQL and back, every row as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from dipole.cli.operations.backup import restore_backup, write_backup
from dipole.database.copies import copy_rows, count_rows
from dipole.errors import Conflict
from dipole_trainer.database.engine import Database, upgrade_database
from dipole_trainer.database.tables import Base
from dipole_trainer.jobs.score_store import SqlScoreStore
from dipole_trainer.jobs.store import JobStore
from dipole_trainer.registry.audit_log import AuditEntry, AuditLog
from dipole_trainer.spec import TrainSpec

SPEC = TrainSpec.model_validate({"prompts": [{"prompt": "ein rotes Quadrat 🟥"}], "rewards": [{"name": "shapes"}]})


def rows_of(database: Database) -> dict[str, list[dict[str, Any]]]:
    with database.reading() as session:
        return {
            table.name: [dict(row) for row in session.execute(select(table).order_by(*table.primary_key)).mappings()]
            for table in Base.metadata.sorted_tables
        }


@pytest.fixture
def databases(tmp_path: Path, postgres_url: str) -> Iterator[list[Database]]:
    """SQLite, PostgreSQL, SQLite; each with tables and no rows."""
    opened = []
    for url in (f"sqlite:///{tmp_path}/one.db", postgres_url, f"sqlite:///{tmp_path}/two.db"):
        upgrade_database(url)
        opened.append(Database(url))
    yield opened
    for database in opened:
        database.close()


def test_every_row_goes_both_ways_and_numbers_go_on(databases: list[Database]) -> None:
    """What is written after a copy has numbers that nobody had."""
    first, second, third = databases
    store = JobStore(first)
    for _ in range(3):
        job = store.create_job(SPEC, extra={"metadata": {"a": None, "b": [1, "ä"]}})
    store.pause_job(job.id)
    claim = store.claim_job("worker", 60)
    assert claim is not None
    store.add_checkpoint(claim, 4, "checkpoint-4", {"loss": 0.1}, kept=[4])
    copied = copy_rows(first, second, Base.metadata)
    assert copied == count_rows(first, Base.metadata)
    assert copied["jobs"] == 3
    assert copied["events"] > 3
    assert rows_of(second) == rows_of(first)
    later = JobStore(second).create_job(SPEC)
    assert later.seq > job.seq
    copy_rows(second, third, Base.metadata)
    assert rows_of(third) == rows_of(second)
    assert JobStore(third).create_job(SPEC).seq > later.seq


def test_a_database_with_rows_is_left_alone(databases: list[Database]) -> None:
    first, second, _ = databases
    for database in (first, second):
        JobStore(database).create_job(SPEC)
    before = rows_of(second)
    with pytest.raises(Conflict, match="rows already"):
        copy_rows(first, second, Base.metadata)
    assert rows_of(second) == before


@pytest.mark.parametrize("source", [0, 1], ids=["sqlite", "postgresql"])
def test_a_copy_is_a_snapshot(databases: list[Database], source: int) -> None:
    """What is written while it is made is in none of its tables."""
    read, written = databases[source], databases[2]
    for _ in range(3):
        JobStore(read).create_job(SPEC)
    before = rows_of(read)

    def write_meanwhile(count: int) -> None:
        JobStore(read).create_job(SPEC)

    copy_rows(read, written, Base.metadata, write_meanwhile)
    assert rows_of(written) == before
    assert count_rows(read, Base.metadata)["jobs"] > 3


def test_a_backup_is_restored_over_what_a_fresh_platform_writes_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that was refused, and scores that were kept, are no jobs: the backup's take their place."""
    for home, status in (("old", 200), ("fresh", 401)):
        url = f"sqlite:///{tmp_path / home / 'dipole.db'}"
        upgrade_database(url)
        with contextlib.closing(Database(url)) as database:
            AuditLog(database).add_entry(AuditEntry("a", "a", "POST", "/v1/files", None, "id", status))
            SqlScoreStore(database, 10).keep_answer(f"key of {home}", {"scores": [1.0]})
    monkeypatch.setenv("DIPOLE_HOME", str(tmp_path / "old"))
    write_backup(tmp_path / "backups")
    monkeypatch.setenv("DIPOLE_HOME", str(tmp_path / "fresh"))
    restore_backup(tmp_path / "backups")
    with contextlib.closing(Database(url)) as database:
        assert [row.status for row in AuditLog(database).list_entries()[0]] == [200]
        assert SqlScoreStore(database, 10).find_answer("key of fresh") is None
        assert SqlScoreStore(database, 10).find_answer("key of old") is not None
