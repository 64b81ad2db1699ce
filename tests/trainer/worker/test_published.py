"""A worker publishes what it can load while it lives, and takes it back when it stops."""

from __future__ import annotations

import importlib.metadata
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from dipole.settings import PlatformSettings
from dipole_trainer.database.engine import Database, upgrade_database
from dipole_trainer.database.tables import WorkerRow
from dipole_trainer.generators.tiny_pipelines import write_pipeline
from dipole_trainer.registry.workers import WorkerRegistry
from dipole_trainer.weights.inventory import Inventory
from dipole_trainer.worker.worker import Worker

EMPTY = Inventory({}, {})


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_idle_worker_is_seen_with_what_it_can_load_until_it_stops(tmp_path: Path) -> None:
    """Weights that come meanwhile are seen with a later beat; the row goes with the worker; devices have memory."""
    settings = PlatformSettings(
        home=tmp_path, database_url=f"sqlite:///{tmp_path}/jobs.db", models_dir=tmp_path / "models", lease_s=0.4,
        artifacts_url=str(tmp_path / "artifacts"),
    )  # fmt: skip
    upgrade_database(settings.database_url)
    database = Database(settings.database_url)
    registry = WorkerRegistry(database)
    worker = Worker(settings, lambda *_, **__: "succeeded", idle_s=0.05)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        wait_for(registry.list_live)
        (row,) = registry.list_live()
        assert (row.name, row.models) == (worker.name, {"tiny-turbo": "tiny"})
        assert row.devices[0]["memory_bytes"] > 2**20
        assert {"tensorboard", "trackio"} <= set(row.trackers or ())
        assert row.version == importlib.metadata.version("dipole")
        assert row.devices[0]["kind"] in ("cpu", "cuda")
        write_pipeline(tmp_path / "models/tiny-sd", "sd")
        wait_for(lambda: any("tiny-sd" in each.models for each in registry.list_live()))
        (later,) = registry.list_live()
        assert later.started_at == row.started_at
        assert later.seen_at > row.seen_at
    finally:
        worker.stop_requested.set()
        thread.join(60)
    assert registry.list_live() == []
    database.close()


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_a_row_that_is_not_renewed_is_nobody(request: pytest.FixtureRequest, tmp_path: Path, engine: str) -> None:
    """Whoever was killed is ignored when the lease has passed, and forgotten when another says that it lives."""
    url = f"sqlite:///{tmp_path}/jobs.db" if engine == "sqlite" else request.getfixturevalue("postgres_url")
    upgrade_database(url)
    database = Database(url)
    registry = WorkerRegistry(database)
    registry.publish("killed", EMPTY, [], lease_s=60)
    registry.publish("lives", EMPTY, [{"kind": "cuda", "name": "x", "memory_bytes": 2**35}], lease_s=60)
    assert [row.name for row in registry.list_live()] == ["killed", "lives"]
    with database.writing() as session:
        session.execute(sa.update(WorkerRow).where(WorkerRow.name == "killed").values(expires_at=0.0))
    assert [row.name for row in registry.list_live()] == ["lives"]
    registry.publish("lives", EMPTY, [], lease_s=60)
    with database.reading() as session:
        assert session.scalars(sa.select(WorkerRow.name)).all() == ["lives"]
    registry.publish("died", EMPTY, [], lease_s=60)
    moved = {"seen_at": WorkerRow.seen_at + 7200, "expires_at": WorkerRow.expires_at + 7200}
    with database.writing() as session:  # the clock was two hours ahead, and is set back
        session.execute(sa.update(WorkerRow).where(WorkerRow.name == "died").values(moved))
    assert [row.name for row in registry.list_live()] == ["lives"]
    registry.remove("lives")
    registry.remove("lives")
    assert registry.list_live() == []
    database.close()
