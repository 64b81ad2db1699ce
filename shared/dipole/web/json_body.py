"""JSON bodies as models: bounded before anything is built of them, and built in a thread.

A value in JSON takes two bytes, and as an object of Python's a hundred and more; an error about it takes a thousand.
So keys and values are counted in the bytes themselves, and protocol.schemas.StrictModel names a few errors of many.
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

    def __init__(self, *, max_keys: int = MAX_VALUES) -> None:
        self._max_keys = max_keys
        self._large_turn = asyncio.Semaphore(1)

    async def build(self, build: Callable[[bytes], T], body: bytes) -> T:
        """`build(body)`, in a thread. Raises TooLarge for a body of too many keys or more than MAX_VALUES values."""
        count = await asyncio.to_thread(self._check_size, body)
        if count <= LARGE_VALUES:
            return await asyncio.to_thread(build, body)
        async with self._large_turn:
            return await asyncio.to_thread(build, body)

    def _check_size(self, body: bytes) -> int:
        count = count_values(body)
        if count > MAX_VALUES or body.count(b":") > self._max_keys:
            raise TooLarge(
                f"the JSON holds more than {MAX_VALUES} values or {self._max_keys} keys; send fewer", field="body"
            )
        return count


def count_values(body: bytes) -> int:
    """Most values that JSON may hold: those of an array or object are one more than its commas."""
    return 1 + sum(body.count(mark) for mark in (b",", b"[", b"{"))
