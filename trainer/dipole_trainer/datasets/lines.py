"""Lines of text files, bounded while they are read."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO, Protocol, Self

from dipole.errors import TooLarge

MAX_LINES = 1_000_000
MAX_LINE_BYTES = 2**20
MAX_PAIR_LINE_BYTES = 48 * 2**20  # two images of MAX_PIXELS that hardly compress, in base64


class Lines(Protocol):
    """What lines are read from: a file of bytes, or Utf8Lines."""

    def readline(self, limit: int, /) -> bytes: ...


class Utf8Lines:
    r"""A text file's lines, ended by \n where they were by \r\n or \r, without byte order marks: files that were joined
    have one in the middle.

    Bytes that are not UTF-8 stay as they are: who reads a line can name it. The file stays open.
    """

    def __init__(self, source: BinaryIO) -> None:
        self._text = io.TextIOWrapper(source, encoding="utf-8", errors="surrogateescape", newline=None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._text.detach()

    def readline(self, limit: int, /) -> bytes:
        """At most about `limit` bytes of a line: four a character, at worst."""
        return self._text.readline(limit).lstrip("\ufeff").encode("utf-8", "surrogateescape")


def numbered_lines(
    source: Lines, field: str, max_bytes: int = MAX_LINE_BYTES, *, empty: bool = False
) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers, from 1. Raises TooLarge before a line beyond `max_bytes` is read to its end."""
    number = 0
    while line := source.readline(max_bytes + 1):
        number += 1
        if len(line) > max_bytes:
            raise TooLarge(f"line {number} exceeds {max_bytes} bytes", field=f"{field}[{number}]")
        if number > MAX_LINES:
            raise TooLarge(f"the file has more than {MAX_LINES} lines", field=field)
        if empty or line.strip():
            yield number, line
