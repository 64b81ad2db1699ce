"""What a caller is told of a validation: its first error, as a sentence and as the path of the field to blame."""

from __future__ import annotations

from typing import NamedTuple

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
