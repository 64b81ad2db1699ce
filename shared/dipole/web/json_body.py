"""JSON bodies as models: bounded before anything is built of them, and built in a thread.

A value in JSON takes two bytes, and as an object of Python's a hundred and more; an error about it takes a thousand.
So values are counted in the bytes themselves, and dipole.protocol.schemas.StrictModel names a few errors of many.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from dipole.errors import TooLarge

MAX_VALUES = 2**21
LARGE_VALUES = 2**16  # a body of more is built alone

T = TypeVar("T")


class JSONBuilder:
    """Builds what JSON says; one for each app. Large bodies take their turns, so that their memory does not add up."""

    def __init__(self) -> None:
        self._large_turn = asyncio.Semaphore(1)

    async def build(self, build: Callable[[bytes], T], body: bytes) -> T:
        """`build(body)`, in a thread. Raises TooLarge for a body of more than MAX_VALUES values."""
        count = await asyncio.to_thread(count_values, body)
        if count > MAX_VALUES:
            raise TooLarge(f"the JSON holds more than {MAX_VALUES} values; send fewer", field="body")
        if count <= LARGE_VALUES:
            return await asyncio.to_thread(build, body)
        async with self._large_turn:
            return await asyncio.to_thread(build, body)


def count_values(body: bytes) -> int:
    """Most values that JSON may hold: those of an array or object are one more than its commas."""
    return 1 + sum(body.count(mark) for mark in (b",", b"[", b"{"))
