"""Polls for new events and wakes the event streams of the jobs that have some: one query an interval for all streams,
none while no one waits.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection

import structlog
from sqlalchemy.exc import SQLAlchemyError

from dipole.database.failures import describe_database_error

log = structlog.get_logger()

EventsAfter = Callable[[int | None], tuple[int, Collection[str]]]


class EventNotifier:
    """`events_after(id)` gives the highest event id and the jobs with events above `id`; of None, the id alone."""

    def __init__(self, events_after: EventsAfter, *, poll_interval_s: float = 0.5) -> None:
        self._events_after, self._poll_interval_s = events_after, poll_interval_s
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._seen: int | None = None

    @contextlib.asynccontextmanager
    async def run_in_background(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._poll())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def wait_for_change(self, job_id: str, timeout_s: float) -> bool:
        """Wait until the job has something new, at most so long. Only a wake-up: read what there is and wait again."""
        changed = asyncio.Event()
        self._waiting.setdefault(job_id, set()).add(changed)
        try:
            async with asyncio.timeout(timeout_s):
                await changed.wait()
            return True
        except TimeoutError:
            return False
        finally:
            self._waiting[job_id].remove(changed)
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._poll_interval_s)
            if not self._waiting:
                continue
            try:
                newest, jobs = await asyncio.to_thread(self._events_after, self._seen)
            except SQLAlchemyError as error:
                log.warning("database_unreachable", error=describe_database_error(error))
                continue
            # what came before the first look is unknown: all look for themselves
            for job_id in self._waiting if self._seen is None else jobs:
                for changed in self._waiting.get(job_id, ()):
                    changed.set()
            self._seen = newest
