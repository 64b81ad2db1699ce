"""Prompt files: JSON lines of {prompt, metadata?}, checked line by line, so that a broken one is named.

{"prompt": "a photo of a red square", "metadata": {"tag": "single_object"}}
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from pydantic import ValidationError

from dipole.errors import InvalidInput, TooLarge
from dipole.web import field_path
from dipole_trainer.spec import PromptSpec

MAX_LINE_BYTES = 2**20
MAX_LINES = 1_000_000
UNSTORABLE = "NUL characters, and numbers that are not finite, cannot be stored"


@dataclass(frozen=True)
class Checked:
    """What a whole, correct file is."""

    bytes: int
    lines: int
    sha256: str


def read(source: BinaryIO, *, field: str) -> Iterator[PromptSpec]:
    """The prompts of a file. Raises InvalidInput that names the first broken line."""
    for number, line in _lines(source, field):
        if line.strip():
            yield _prompt(line, number, field)


def check(source: BinaryIO, target: BinaryIO, *, field: str) -> Checked:
    """Copy a file to `target`, checking it on the way. Raises InvalidInput that names the first broken line."""
    digest, size, prompts = hashlib.sha256(), 0, 0
    for number, line in _lines(source, field):
        digest.update(line)
        size += target.write(line)
        if line.strip():
            _prompt(line, number, field)
            prompts += 1
    if prompts == 0:
        raise InvalidInput(f"{field} holds no prompts: write one JSON object with a `prompt` on each line", field=field)
    return Checked(bytes=size, lines=prompts, sha256=digest.hexdigest())


def dump(prompts: Iterable[PromptSpec]) -> bytes:
    return b"".join(prompt.model_dump_json(exclude_none=True).encode() + b"\n" for prompt in prompts)


def storable(value: Any) -> bool:
    """Whether any database can hold a JSON value: PostgreSQL has no place for NUL, JSON none for NaN."""
    if isinstance(value, str):
        return "\x00" not in value
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(storable(key) and storable(each) for key, each in value.items())
    return not isinstance(value, list | tuple) or all(storable(each) for each in value)


def _lines(source: BinaryIO, field: str) -> Iterator[tuple[int, bytes]]:
    number = 0
    while line := source.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise TooLarge(f"line {number} exceeds {MAX_LINE_BYTES} bytes", field=f"{field}[{number}]")
        if number > MAX_LINES:
            raise TooLarge(f"the file has more than {MAX_LINES} lines", field=field)
        yield number, line


def _prompt(line: bytes, number: int, field: str) -> PromptSpec:
    try:
        prompt = PromptSpec.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = field_path(first["loc"])
        reason = f"{where}: {first['msg']}" if where else first["msg"]
        raise InvalidInput(f"line {number}: {reason}", field=f"{field}[{number}]") from error
    if not storable(prompt.model_dump()):
        raise InvalidInput(f"line {number}: {UNSTORABLE}", field=f"{field}[{number}]")
    return prompt
