"""Limits how fast an endpoint is asked: requests in flight, requests a minute, and none before its Retry-After.

    async with limiter.acquire_slot():
        ...  # one request

One RateLimiter serves every group of a process, in the order in which their requests came.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class RateLimiter:
    def __init__(self, *, in_flight: int, per_minute: float | None) -> None:
        self._slots, self._start_lock = asyncio.Semaphore(in_flight), asyncio.Lock()
        self._interval_s = 60 / per_minute if per_minute else 0.0
        self._next_start = 0.0  # the loop's time before which no request starts

    @asynccontextmanager
    async def acquire_slot(self) -> AsyncIterator[None]:
        """Wait for a turn and hold it; cancelled while waiting, it takes none."""
        async with self._slots:
            # one sleeps until the next start, the others queue on the lock
            async with self._start_lock:
                loop = asyncio.get_running_loop()
                # again, because `pause_all` may have put it off
                while (wait := self._next_start - loop.time()) > 0:
                    await asyncio.sleep(wait)
                self._next_start = loop.time() + self._interval_s
            yield

    def pause_all(self, seconds: float) -> None:
        """Start nothing for so long: the endpoint asked everybody to come back later, not one request alone."""
        self._next_start = max(self._next_start, asyncio.get_running_loop().time() + seconds)
