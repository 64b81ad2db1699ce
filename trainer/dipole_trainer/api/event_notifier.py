"""Polls the highest event id and wakes every waiting event stream: one query an interval for all of them, none while no
one waits.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import structlog
from sqlalchemy.exc import SQLAlchemyError

from dipole_trainer.database.failures import describe_database_error

log = structlog.get_logger()


class EventNotifier:
    """`newest` gives a value that changes when an event is written, such as the highest event id."""

    def __init__(self, newest: Callable[[], int], *, poll_interval_s: float = 0.5) -> None:
        self._newest, self._poll_interval_s = newest, poll_interval_s
        self._changed = asyncio.Event()
        self._waiting = 0
        self._seen = -1

    @contextlib.asynccontextmanager
    async def run_in_background(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._poll_newest())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def wait_for_change(self, timeout_s: float) -> bool:
        """Wait until something is new, at most so long. A wake-up only: read what there is, then wait again."""
        self._waiting += 1
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
            return True
        except TimeoutError:
            return False
        finally:
            self._waiting -= 1

    async def _poll_newest(self) -> None:
        while True:
            await asyncio.sleep(self._poll_interval_s)
            if not self._waiting:
                continue
            try:
                newest = await asyncio.to_thread(self._newest)
            except SQLAlchemyError as error:
                log.warning("database_unreachable", error=describe_database_error(error))
                continue
            if newest != self._seen:
                self._seen = newest
                self._changed.set()
                self._changed = asyncio.Event()
