"""How fast an endpoint is asked: so many requests in flight, so many a minute, and none before it said.

    async with pace.turn():
        ...  # one request

One Pace serves every group of a process, in the order in which their requests came.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Pace:
    def __init__(self, *, in_flight: int, per_minute: float | None) -> None:
        self._slots, self._door = asyncio.Semaphore(in_flight), asyncio.Lock()
        self._gap_s = 60 / per_minute if per_minute else 0.0
        self._next = 0.0  # the loop's time before which no request starts

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn and hold it; cancelled while waiting, it takes none."""
        async with self._slots:
            async with self._door:  # one waits for the time, the others behind it
                loop = asyncio.get_running_loop()
                while (wait := self._next - loop.time()) > 0:  # again, because `hold` may have put it off
                    await asyncio.sleep(wait)
                self._next = loop.time() + self._gap_s
            yield

    def hold(self, seconds: float) -> None:
        """Start nothing for so long: the endpoint asked everybody to come back later, not one request alone."""
        self._next = max(self._next, asyncio.get_running_loop().time() + seconds)
