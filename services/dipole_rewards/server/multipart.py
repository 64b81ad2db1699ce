"""A multipart body as its parts, each in the pieces that it came in: nothing is copied while it comes, or put on disk.

Starlette's form parser copies a part twice and writes what is longer than a megabyte to a file. Here the body may be
held in memory: BodyLimit has bounded it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from dipole.errors import InvalidInput

MAX_TEXT_BYTES = 2**20  # of a part without a filename
MIN_PIECE_BYTES = 4096  # a view of fewer takes more memory than they do: they are put together as they come


class TooManyFiles(InvalidInput):
    """More parts with a filename than were to be read."""


class BodyPart:
    """One part. Only one with a filename is a file."""

    def __init__(self, name: str, *, is_file: bool) -> None:
        self.name, self.is_file, self.size = name, is_file, 0
        self._pieces: list[memoryview | bytearray] = []

    def add(self, piece: memoryview) -> None:
        self.size += len(piece)
        if len(piece) >= MIN_PIECE_BYTES:
            self._pieces.append(piece)
        elif self._pieces and isinstance(self._pieces[-1], bytearray):
            self._pieces[-1] += piece
        else:
            self._pieces.append(bytearray(piece))

    def take_bytes(self) -> bytearray:
        """The part's bytes in one array, which may be written to. The pieces that it was made of are given up."""
        pieces, self._pieces = self._pieces, []
        return bytearray().join(pieces)


async def read_parts(
    content_type: str, body: AsyncIterator[bytes], *, max_files: int, max_texts: int
) -> list[BodyPart]:
    """The parts in their order. Raises InvalidInput for what is no multipart body, TooManyFiles past `max_files`."""
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise _unreadable("Missing boundary in multipart.")
    collector = _PartCollector(max_files, max_texts)
    try:
        parser = MultipartParser(boundary, collector.callbacks())
        async for chunk in body:
            parser.write(chunk)
        parser.finalize()
    except FormParserError as error:
        raise _unreadable(str(error)) from None
    return collector.parts


class _PartCollector:
    """What the parser calls: headers come in crumbs, data in slices of what it was given."""

    def __init__(self, max_files: int, max_texts: int) -> None:
        self._left = {True: max_files, False: max_texts}
        self._name, self._value, self._disposition = b"", b"", b""
        self.parts: list[BodyPart] = []

    def callbacks(self) -> Any:
        names = ("part_begin", "header_field", "header_value", "header_end", "headers_finished", "part_data")
        return {f"on_{name}": getattr(self, f"_on_{name}") for name in names}

    def _on_part_begin(self) -> None:
        self._disposition = b""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name = self._value = b""

    def _on_headers_finished(self) -> None:
        options = parse_options_header(self._disposition)[1]
        if b"name" not in options:
            raise _unreadable('The Content-Disposition header field "name" must be provided.')
        part = BodyPart(options[b"name"].decode("utf-8", "replace"), is_file=b"filename" in options)
        self._left[part.is_file] -= 1
        if self._left[part.is_file] < 0:
            raise TooManyFiles("too many files") if part.is_file else _unreadable("too many parts without a filename")
        self.parts.append(part)

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        part = self.parts[-1]
        if not part.is_file and part.size + end - start > MAX_TEXT_BYTES:
            raise _unreadable(f"Part exceeded maximum size of {MAX_TEXT_BYTES // 1024}KB.")
        part.add(memoryview(data)[start:end])


def _unreadable(why: str) -> InvalidInput:
    return InvalidInput(f"the multipart body cannot be read: {why}", field="body")
