"""Many streams cost little: they share what they read, and one query says who has something new."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from anyio import CapacityLimiter
from fastapi.sse import KEEPALIVE_COMMENT
from sqlalchemy.exc import OperationalError

from dipole_trainer.api import event_stream
from dipole_trainer.api.event_notifier import EventNotifier
from dipole_trainer.api.event_stream import EventRead, EventReader, stream_events
from dipole_trainer.database.engine import Database, upgrade_database
from dipole_trainer.database.tables import EventRow
from dipole_trainer.jobs.store import JobStore
from dipole_trainer.spec import PromptSpec, RewardSpec, TrainSpec

SPEC = TrainSpec(prompts=(PromptSpec(prompt="a red square"),), rewards=(RewardSpec(name="shapes"),))


class CountingStore(JobStore):
    reads = 0

    def events_since(self, job_id: str, cursor: int, *, limit: int = 500) -> Sequence[EventRow]:
        self.reads += 1
        return super().events_since(job_id, cursor, limit=limit)


def test_streams_that_ask_for_the_same_share_a_read(tmp_path: Path) -> None:
    """And one that is closed meanwhile takes nothing from the others."""
    url = f"sqlite:///{tmp_path}/jobs.db"
    upgrade_database(url)
    database = Database(url)
    store = CountingStore(database)
    job_id = store.create_job(SPEC).id

    async def follow() -> None:
        reader = EventReader(store, CapacityLimiter(2))
        streams = [asyncio.create_task(reader.read_events(job_id, 0)) for _ in range(50)]
        await asyncio.sleep(0)
        streams[0].cancel()
        found = await asyncio.gather(*streams[1:])
        assert {tuple(event_id for event_id, _ in each.chunks) for each in found} == {(1, 2)}
        assert store.reads == 1
        later = await reader.read_events(job_id, 2)
        assert (later.chunks, later.is_over, store.reads) == ([], False, 2)

    asyncio.run(follow())
    database.close()


def test_an_event_that_the_poll_misses_wakes_its_streams_a_little_later() -> None:
    """One that was committed after another job's with a higher id; whoever has seen it goes on waiting."""
    asked = list[Collection[str]]()

    def newest_events(jobs: Collection[str]) -> dict[str, int]:
        asked.append(jobs)
        return {"a": 7}

    async def wait() -> None:
        notifier = EventNotifier(lambda _: (9, ()), newest_events, poll_interval_s=0.01, recheck_interval_s=0.02)
        async with notifier.run_in_background():
            assert await notifier.wait_for_change("a", 0, 60)  # the first look wakes all
            behind, current = (asyncio.create_task(notifier.wait_for_change("a", cursor, 60)) for cursor in (6, 7))
            assert await behind
            assert not current.done()
            current.cancel()
        assert set(asked[0]) == {"a"}

    asyncio.run(wait())


def test_a_stream_waits_for_a_database_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says nothing but that it lives, and goes on where it was: whoever follows need not come back."""
    monkeypatch.setattr(event_stream, "RETRY_S", 0.0)
    away = OperationalError("SELECT", {}, Exception("server closed the connection unexpectedly"))
    reads: list[EventRead | Exception] = [EventRead([(3, b"three")], False), away, EventRead([(4, b"four")], False)]
    asked: list[int] = []

    async def read_events(job_id: str, cursor: int) -> EventRead:
        asked.append(cursor)
        found = reads.pop(0) if reads else EventRead([], True)
        if isinstance(found, Exception):
            raise found
        return found

    async def follow() -> list[bytes]:
        state: Any = SimpleNamespace(event_reader=SimpleNamespace(read_events=read_events))
        return [chunk async for chunk in stream_events(state, "job", 0) if chunk != KEEPALIVE_COMMENT]

    assert asyncio.run(follow()) == [b"three", b"four"]
    assert asked == [0, 3, 3, 4]
