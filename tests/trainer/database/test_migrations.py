"""Migrations with data in the tables: the first release's schema and rows, to this version's and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from pydantic import SecretStr

from dipole.client.endpoint import Endpoint
from dipole.database.migrations import alembic_config
from dipole.web.auth import hash_key
from dipole_trainer.api import schemas
from dipole_trainer.database.engine import MIGRATIONS, Database
from dipole_trainer.database.tables import AuditRow, Base, WebhookRow, WorkerRow
from dipole_trainer.jobs.ranking_ledger import RankingLedger
from dipole_trainer.jobs.store import JobStore
from dipole_trainer.registry.api_keys import ApiKeys
from dipole_trainer.registry.audit_log import AuditEntry, AuditLog
from dipole_trainer.registry.files import FileRegistry
from dipole_trainer.registry.rewards import RewardRegistry
from dipole_trainer.registry.workers import WorkerRegistry
from dipole_trainer.weights.inventory import Inventory

FIRST = "0001"
DONE, QUEUED, FAILED = "ftjob-done", "ftjob-queued", "ftjob-failed"
ROWS: dict[str, list[dict[str, Any]]] = json.loads((Path(__file__).parent / "first-release-rows.json").read_text())
"""A row or more in each table of the first schema, in an order in which they may be written. Specs and summaries are as
the code of that time wrote them.
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path}/jobs.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    database = Database(url)
    yield database
    database.close()


def migrate(database: Database, move: Callable[[Config, str], None], revision: str) -> None:
    with database.engine.execution_options(sqlite_begin="IMMEDIATE").begin() as connection:
        move(alembic_config(connection, MIGRATIONS), revision)


def rows_there(database: Database) -> dict[str, list[dict[str, Any]]]:
    """Every row of the first schema's tables, as the database has it now."""
    reflected = sa.MetaData()
    reflected.reflect(database.engine, only=list(ROWS))
    found = {}
    with database.engine.connect() as connection:
        for name in ROWS:
            table = reflected.tables[name]
            rows = connection.execute(sa.select(table).order_by(*table.primary_key)).mappings()
            found[name] = [dict(row) for row in rows]
    return found


def write_first_rows(database: Database) -> None:
    tables = sa.MetaData()
    tables.reflect(database.engine)
    assert tables.tables.keys() - {"alembic_version"} == ROWS.keys(), "each table of the first release has rows"
    with database.engine.begin() as connection:
        for name, rows in ROWS.items():
            assert all(row.keys() == set(tables.tables[name].columns.keys()) for row in rows), (
                "and each column is given"
            )
            connection.execute(sa.insert(tables.tables[name]), rows)
        if not database.is_sqlite():  # which numbers what was given its numbers by itself
            for name in ("files", "jobs", "checkpoints", "events", "ranked_groups"):
                column = "id" if name == "events" else "seq"
                connection.exec_driver_sql(
                    f"SELECT setval(pg_get_serial_sequence('{name}', '{column}'), (SELECT max({column}) FROM {name}))"
                )


def check_read(database: Database) -> None:
    """Whatever the first release wrote, this version's own code reads, and shows."""
    store = JobStore(database)
    jobs, _ = store.list_jobs()
    assert [each.id for each in jobs] == [FAILED, QUEUED, DONE]
    shown = [schemas.show_job(each) for each in jobs]
    assert [each.status for each in shown if isinstance(each, schemas.FineTuningJob)] == [
        "failed",
        "queued",
        "succeeded",
    ]
    assert isinstance(shown[1], schemas.FineTuningJob)
    assert shown[1].method.type == "random"
    assert shown[1].metadata == {"of": "ann"}
    assert [store.load_spec(each.id).method.type for each in jobs] == ["drpo", "random", "drpo"]
    assert store.load_spec(DONE).prompts[0].metadata == {"tag": "one"}
    assert store.job_of_key("once", "d").fence == 2**40
    assert store.get_job(FAILED).error == {"code": "internal", "message": "no 🟥"}
    events, _ = store.list_events(DONE)
    assert [(each.id, each.kind, each.data) for each in events][::-1] == [
        (each["id"], each["kind"], each["data"]) for each in ROWS["events"]
    ]
    (checkpoint,), _ = store.list_checkpoints(DONE)
    assert (checkpoint.id, checkpoint.metrics) == ("ftckpt-1", {"train_loss": 0.5, "shapes": None})
    (file,), _ = FileRegistry(database).list_files()
    assert (file.bytes, file.kind, file.filename) == (2**33, "prompts", "ä.jsonl")
    registry = RewardRegistry(database)
    assert registry.get_endpoint("shapes") == Endpoint(url="http://127.0.0.1:1", key=SecretStr("a-secret"))
    assert registry.get_endpoint("open").key is None
    keys = ApiKeys(database)
    found = keys.find_key(hash_key("a-key"))
    assert found is not None
    assert (found.name, found.scopes) == ("ann", ["train"])
    assert keys.find_key(hash_key("gone")) is None, "revoked stays revoked"
    (group,), _ = RankingLedger(database).list_groups(DONE)
    assert (group["seeds"], group["metadata"]) == ([2**62, 2], {"tag": "one"})
    assert group["rewards"]["shapes"]["scores"] == [0.5, None]


def write_newer_rows(database: Database) -> None:
    """What the first release has no place for."""
    store = JobStore(database)
    with store.database.writing() as session:
        session.add(
            WebhookRow(
                id="evt_1",
                job_id=DONE,
                ending="succeeded",
                url="http://a",
                state="waiting",
                next_at=0.0,
                created_at=0.0,
            )
        )
    AuditLog(database).add_entry(AuditEntry("key-1", "ann", "POST", "/v1/files", None, "r", 200))
    WorkerRegistry(database).publish("worker", Inventory({}, {}), [], lease_s=60)


def test_the_first_release_s_data_goes_to_this_version_and_back(database: Database) -> None:
    """Upgraded, each row is read by this version's code, and work goes on. Downgraded, each row is as it was written,
    and what was added since is there where the first release has a place for it. Then once more up.
    """
    migrate(database, command.upgrade, FIRST)
    write_first_rows(database)
    migrate(database, command.upgrade, "head")
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    check_read(database)
    write_newer_rows(database)
    store = JobStore(database)
    store.cancel_job(QUEUED)
    later = store.create_job(store.load_spec(QUEUED))
    assert later.seq > 3
    migrate(database, command.downgrade, FIRST)
    found = rows_there(database)
    assert [each["id"] for each in found["jobs"]] == [DONE, QUEUED, FAILED, later.id]
    assert [(each["kind"]) for each in found["events"] if each["job_id"] == QUEUED] == ["cancelled"]
    for name, rows in ROWS.items():
        kept = [row for row in rows if row.get("id") != QUEUED]
        assert [row for row in kept if row not in found[name]] == [], name
    migrate(database, command.upgrade, "head")
    assert JobStore(database).get_job(QUEUED).state == "cancelled"
    assert JobStore(database).load_spec(later.id) == store.load_spec(QUEUED)
    with database.reading() as session:
        left = [
            session.scalar(sa.select(sa.func.count()).select_from(row)) for row in (WebhookRow, AuditRow, WorkerRow)
        ]
    assert left == [0, 0, 0], "the way back has no place for these"
