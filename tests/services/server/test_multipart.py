"""Multipart bodies: the parts are what was sent, however the body came, and what is none is refused."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import httpx
import pytest

from dipole.errors import InvalidInput
from dipole_rewards.server.multipart import BodyPart, TooManyFiles, read_parts

pytestmark = pytest.mark.anyio
DATA = bytes(range(256)) * 40 + b"\r\n--not the boundary\r\n"
SENT = httpx.Request(
    "POST", "http://x", data={"request": "{}"}, files={"a": ("a", DATA), "b": ("b", b""), "é": ("é", b"\r\n")}
)


async def pieces(size: int) -> AsyncIterator[bytes]:
    body = SENT.read()
    for start in range(0, len(body), size):
        yield body[start : start + size]


@pytest.mark.parametrize("size", [1, 13, 4096, 10**6])
async def test_parts_are_what_was_sent_however_it_comes(size: int) -> None:
    """Byte by byte or at once; an array of its own for each part, which may be written to."""
    parts = await read_parts(SENT.headers["content-type"], pieces(size), max_files=3, max_texts=1)
    assert [(part.name, part.is_file) for part in parts] == [
        ("request", False), ("a", True), ("b", True), ("é", True),
    ]  # fmt: skip
    assert [part.take_bytes() for part in parts] == [b"{}", DATA, b"", b"\r\n"]
    with pytest.raises(TooManyFiles):
        await read_parts(SENT.headers["content-type"], pieces(size), max_files=2, max_texts=1)
    with pytest.raises(InvalidInput, match="too many parts without a filename"):
        await read_parts(SENT.headers["content-type"], pieces(size), max_files=3, max_texts=0)


async def test_crumbs_take_no_more_memory_than_they_have_bytes() -> None:
    """A part that comes byte by byte is held as one array and not as a hundred thousand views."""
    part = BodyPart("a", is_file=True)
    for byte in range(100_000):
        part.add(memoryview(bytes([byte % 256])))
    assert sum(map(sys.getsizeof, part._pieces)) < 2 * part.size
