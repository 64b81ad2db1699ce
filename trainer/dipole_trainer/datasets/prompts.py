"""Prompt files: JSON lines of {prompt, metadata?}, checked line by line, so that a broken one is named.

{"prompt": "a photo of a red square", "metadata": {"tag": "single_object"}}

GenEval's own evaluation_metadata.jsonl, whose fields stand beside the prompt, and text of a prompt a line are rewritten
as these lines when they come, so that everything after the upload knows one form.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, TypeVar

from pydantic import JsonValue, ValidationError

from dipole.errors import InvalidInput, TooLarge
from dipole.protocol.validation import check_storable, first_error
from dipole_trainer.datasets.lines import MAX_LINE_BYTES, Lines, numbered_lines
from dipole_trainer.spec import PromptSpec, SpecModel

_SHOWN_FIELDS = 8
_NOT_UTF8 = "the line is not in UTF-8: save the file as UTF-8"

LineT = TypeVar("LineT", bound=PromptSpec)


@dataclass(frozen=True)
class CheckedFile:
    """What a whole, correct file is, as it is kept."""

    bytes: int
    lines: int
    sha256: str


class _GenEvalLine(SpecModel):
    """A line of evaluation_metadata.jsonl."""

    prompt: str
    tag: str | None = None
    include: tuple[JsonValue, ...]
    exclude: tuple[JsonValue, ...] = ()


def read_prompts(source: Lines, *, field: str) -> Iterator[PromptSpec]:
    """The prompts of a kept file. Raises InvalidInput that names the first broken line."""
    for number, line in numbered_lines(source, field):
        yield parse_line(PromptSpec, line, number, field)


def check_prompt_line(line: bytes, number: int, field: str) -> bytes:
    """A line as it is kept. Raises InvalidInput that names it."""
    try:
        parse_line(PromptSpec, line, number, field)
    except InvalidInput:
        try:
            found = _GenEvalLine.model_validate_json(line)
        except ValidationError:
            found = None
        if found is None:
            raise
        return _check_prompt(found.prompt, number, field, found.model_dump(exclude={"prompt"}, exclude_unset=True))
    return line


def check_text_line(line: bytes, number: int, field: str) -> bytes:
    """A line of plain text, a prompt, as it is kept. Raises InvalidInput that names it."""
    try:
        return _check_prompt(line.decode().strip(), number, field)
    except UnicodeDecodeError as error:
        raise InvalidInput(f"line {number}: {_NOT_UTF8}", field=f"{field}[{number}]") from error


def _check_prompt(prompt: str, number: int, field: str, metadata: dict[str, JsonValue] | None = None) -> bytes:
    try:
        # before it is dumped: that makes null of NaN
        check_storable(metadata, "metadata")
    except InvalidInput as error:
        raise InvalidInput(f"line {number}: {error}", field=f"{field}[{number}]") from error
    kept = dump_prompts([PromptSpec.model_construct(prompt=prompt, metadata=metadata)])
    parse_line(PromptSpec, kept, number, field)
    return kept


def copy_checked_lines(
    source: Lines,
    target: BinaryIO,
    check_line: Callable[[bytes, int, str], bytes],
    *,
    field: str,
    max_bytes: int,
    max_line_bytes: int = MAX_LINE_BYTES,
) -> CheckedFile:
    """Copy what `check_line` makes of each line that is not empty, at most `max_bytes`; what it raises ends it."""
    digest, size, count = hashlib.sha256(), 0, 0
    for number, line in numbered_lines(source, field, max_line_bytes, empty=True):
        if line.strip():
            line = check_line(line, number, field)
            count += 1
        size += len(line)
        if size > max_bytes:
            raise TooLarge(f"the file exceeds {max_bytes} bytes as JSON lines", field=field)
        digest.update(line)
        target.write(line)
    return CheckedFile(bytes=size, lines=count, sha256=digest.hexdigest())


def dump_prompts(prompts: Iterable[PromptSpec]) -> bytes:
    return b"".join(prompt.model_dump_json(exclude_none=True).encode() + b"\n" for prompt in prompts)


def parse_line(kind: type[LineT], line: bytes, number: int, field: str) -> LineT:
    """A line as a `kind`. Raises InvalidInput that names it and what is wrong there."""
    where = f"{field}[{number}]"
    try:
        found = kind.model_validate_json(line)
        check_storable(found.model_dump(include={"prompt", "metadata"}))
    except ValidationError as error:
        raise InvalidInput(f"line {number}: {_explain(error, line)}", field=where) from error
    except InvalidInput as error:
        raise InvalidInput(f"line {number}: {error}", field=where) from error
    return found


def _explain(error: ValidationError, line: bytes) -> str:
    """The first error, and what it comes of where pydantic's own words do not say."""
    try:
        line.decode()
    except UnicodeDecodeError:
        return _NOT_UTF8
    first = first_error(error)
    if first.kind == "missing":
        return f"{first.path} is missing, the line's fields are {_field_names(line)}"
    if first.kind == "extra_forbidden":
        return f"{first.path} is no field of a line: put what rewards are to read of it into metadata, or leave it out"
    said = first.sentence
    if line.rstrip().endswith(b"},"):
        return f"{said}: no comma ends a JSON line, nothing is between them"
    if "hex escape" in said:
        return rf"{said}: half of a character (a lone surrogate, as in \ud83d) cannot be stored, leave it out"
    return said


def _field_names(line: bytes) -> str:
    names = [repr(name)[:40] for name in json.loads(line)]
    return ", ".join([*names[:_SHOWN_FIELDS], *(["…"] if len(names) > _SHOWN_FIELDS else [])]) or "none"
