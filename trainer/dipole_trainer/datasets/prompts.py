"""Prompt files: JSON lines of {prompt, metadata?}, checked line by line, so that a broken one is named.

{"prompt": "a photo of a red square", "metadata": {"tag": "single_object"}}
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

from pydantic import ValidationError

from dipole.errors import InvalidInput, TooLarge
from dipole.protocol.validation import first_error
from dipole_trainer.spec import PromptSpec

MAX_LINE_BYTES = 2**20
MAX_LINES = 1_000_000
UNSTORABLE = "NUL characters, and numbers that are not finite, cannot be stored"

LineT = TypeVar("LineT", bound=PromptSpec)


@dataclass(frozen=True)
class CheckedFile:
    """What a whole, correct file is."""

    bytes: int
    lines: int
    sha256: str


def read_prompts(source: BinaryIO, *, field: str) -> Iterator[PromptSpec]:
    """The prompts of a file. Raises InvalidInput that names the first broken line."""
    for number, line in numbered_lines(source, field):
        yield parse_line(PromptSpec, line, number, field)


def check_prompts_file(source: BinaryIO, target: BinaryIO, *, field: str) -> CheckedFile:
    """Copy a file to `target`, checking it on the way. Raises InvalidInput that names the first broken line."""
    checked = copy_checked_lines(
        source, target, lambda number, line: parse_line(PromptSpec, line, number, field), field=field
    )
    if checked.lines == 0:
        raise InvalidInput(f"{field} holds no prompts: write one JSON object with a `prompt` on each line", field=field)
    return checked


def copy_checked_lines(
    source: BinaryIO,
    target: BinaryIO,
    check_line: Callable[[int, bytes], object],
    *,
    field: str,
    max_line_bytes: int = MAX_LINE_BYTES,
) -> CheckedFile:
    """Copy byte for byte, with a look at each line that is not empty; what the look raises ends it."""
    digest, size, count = hashlib.sha256(), 0, 0
    for number, line in numbered_lines(source, field, max_line_bytes, empty=True):
        digest.update(line)
        size += target.write(line)
        if line.strip():
            check_line(number, line)
            count += 1
    return CheckedFile(bytes=size, lines=count, sha256=digest.hexdigest())


def dump_prompts(prompts: Iterable[PromptSpec]) -> bytes:
    return b"".join(prompt.model_dump_json(exclude_none=True).encode() + b"\n" for prompt in prompts)


def is_storable(value: Any) -> bool:
    """Whether any database can hold a JSON value: PostgreSQL has no place for NUL, JSON none for NaN."""
    if isinstance(value, str):
        return "\x00" not in value
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(is_storable(key) and is_storable(each) for key, each in value.items())
    return not isinstance(value, list | tuple) or all(is_storable(each) for each in value)


def numbered_lines(
    source: BinaryIO, field: str, max_bytes: int = MAX_LINE_BYTES, *, empty: bool = False
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


def parse_line(kind: type[LineT], line: bytes, number: int, field: str) -> LineT:
    """A line as a `kind`. Raises InvalidInput that names it and what is wrong there."""
    try:
        found = kind.model_validate_json(line)
    except ValidationError as error:
        raise InvalidInput(f"line {number}: {first_error(error).sentence}", field=f"{field}[{number}]") from error
    if not is_storable(found.model_dump(include={"prompt", "metadata"})):
        raise InvalidInput(f"line {number}: {UNSTORABLE}", field=f"{field}[{number}]")
    return found
