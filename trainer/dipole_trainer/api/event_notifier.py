"""Polls for new events and wakes the event streams of the jobs that have some: one query an interval for all streams,
none while no one waits.

PostgreSQL may commit a lower id of one job after a higher one of another, which a look for ids above the highest seen
misses. So now and then the newest id of each job is compared with what its streams have seen, again in one query.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager

import structlog
from sqlalchemy.exc import SQLAlchemyError

from dipole.database.failures import describe_database_error
from dipole.web import background

log = structlog.get_logger()

EventsAfter = Callable[[int | None], tuple[int, Collection[str]]]
NewestEvents = Callable[[Collection[str]], Mapping[str, int]]


class EventNotifier:
    """`events_after(id)` gives the highest event id and the jobs with events above `id`, of None the id alone;
    `newest_events(jobs)` the highest id of each.
    """

    def __init__(
        self,
        events_after: EventsAfter,
        newest_events: NewestEvents,
        *,
        poll_interval_s: float = 0.5,
        recheck_interval_s: float = 5.0,
    ) -> None:
        self._events_after, self._newest_events = events_after, newest_events
        self._poll_interval_s, self._recheck_interval_s = poll_interval_s, recheck_interval_s
        self._waiting: dict[str, dict[asyncio.Event, int]] = {}  # by job: who waits, and the last event that it saw
        self._seen: int | None = None

    def run_in_background(self) -> AbstractAsyncContextManager[None]:
        return background.run_in_background(self._poll())

    async def wait_for_change(self, job_id: str, cursor: int, timeout_s: float) -> bool:
        """Wait until the job has events after `cursor`, at most so long. Only a wake-up: read what there is."""
        changed = asyncio.Event()
        self._waiting.setdefault(job_id, {})[changed] = cursor
        try:
            async with asyncio.timeout(timeout_s):
                await changed.wait()
            return True
        except TimeoutError:
            return False
        finally:
            del self._waiting[job_id][changed]
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    async def _poll(self) -> None:
        rechecked_at = time.monotonic()
        while True:
            await asyncio.sleep(self._poll_interval_s)
            if not self._waiting:
                continue
            try:
                await self._wake_those_with_new_events()
                if time.monotonic() - rechecked_at >= self._recheck_interval_s:
                    rechecked_at = time.monotonic()
                    await self._wake_those_behind()
            except SQLAlchemyError as error:
                log.warning("database_unreachable", error=describe_database_error(error))

    async def _wake_those_with_new_events(self) -> None:
        newest, jobs = await background.finish_in_thread(self._events_after, self._seen)
        # what came before the first look is unknown: all look for themselves
        for job_id in self._waiting if self._seen is None else jobs:
            for changed in self._waiting.get(job_id, ()):
                changed.set()
        self._seen = newest

    async def _wake_those_behind(self) -> None:
        newest = await background.finish_in_thread(self._newest_events, tuple(self._waiting))
        for job_id, event_id in newest.items():
            for changed, cursor in self._waiting.get(job_id, {}).items():
                if cursor < event_id:
                    changed.set()
