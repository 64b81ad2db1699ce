"""Work beside a server's requests has ended when its server has, threads and all."""

from __future__ import annotations

import asyncio
import threading

import pytest

from dipole.web import background


def test_a_thread_has_ended_when_its_server_has() -> None:
    """Cancelled in the midst of a call, the work waits for it, and makes no further one."""
    began, goes_on, calls = threading.Event(), threading.Event(), list[str]()

    def call() -> None:
        calls.append("began")
        began.set()
        assert goes_on.wait(60)
        calls.append("ended")

    async def work() -> None:
        while True:
            await background.finish_in_thread(call)

    async def serve() -> None:
        async with background.run_in_background(work()):
            await asyncio.to_thread(began.wait, 60)
            asyncio.get_running_loop().call_later(0.2, goes_on.set)
        assert calls == ["began", "ended"]

    asyncio.run(serve())


def test_a_call_that_fails_fails_here() -> None:
    def call(value: int) -> int:
        raise ValueError(value)

    with pytest.raises(ValueError, match="3"):
        asyncio.run(background.finish_in_thread(call, 3))
