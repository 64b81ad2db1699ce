"""What a caller is told of a validation: its first error, as a sentence and as the path of the field to blame; and the
one check of JSON that is the caller's own: metadata, labels, options.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from pydantic import ValidationError

from dipole.errors import InvalidInput
from dipole.protocol.problems import format_field_path


class FirstError(NamedTuple):
    """`path` is the field's, as in `rewards[0].timeout_s`, empty for the whole; nothing repeats what was given."""

    path: str
    message: str
    kind: str  # pydantic's name of it

    @property
    def sentence(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


def first_error(error: ValidationError, field: str = "") -> FirstError:
    """The first of a validation's errors, below `field`, without what was given: it may be a secret."""
    first = error.errors(include_url=False, include_input=False)[0]
    path = format_field_path((*((field,) if field else ()), *first["loc"]))
    return FirstError(path, first["msg"].removeprefix("Value error, "), first["type"])


def blamed_field(error: ValidationError, field: str = "") -> str:
    """The path of the field to blame: of an InvalidInput that a validator raised, the field that it names."""
    cause = error.errors(include_url=False, include_input=False)[0].get("ctx", {}).get("error")
    path = first_error(error, field).path
    return f"{path}.{cause.field}".lstrip(".") if isinstance(cause, InvalidInput) and cause.field else path


def check_storable(value: Any, field: str = "") -> None:
    """Raise InvalidInput that names where a JSON value, below `field`, holds what JSON, UTF-8 or a database cannot."""
    found = _find_unstorable(value)
    if found is not None:
        path, what = found
        where = format_field_path((*((field,) if field else ()), *path)) or "body"
        raise InvalidInput(f"{where}: {what} cannot be stored, leave it out", field=where)


def _find_unstorable(value: Any) -> tuple[tuple[str | int, ...], str] | None:
    """Where the first such value is, and what it is."""
    if isinstance(value, str):
        if "\x00" in value:
            return (), "a NUL character"
        if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            return (), r"half of a character (a lone surrogate, as in \ud83d)"
    elif isinstance(value, float):
        if not math.isfinite(value):
            return (), "a number that is not finite"
    elif isinstance(value, dict | list | tuple):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, each in pairs:
            # a key that cannot be stored cannot be named either: the object that has it is
            if isinstance(key, str) and (found := _find_unstorable(key)) is not None:
                return (), f"a key with {found[1]}"
            if (found := _find_unstorable(each)) is not None:
                return (key, *found[0]), found[1]
    return None
