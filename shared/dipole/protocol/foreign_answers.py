"""Answers of servers that are not ours: what is used of them is read strictly, the rest as far as it can be read.

class Completion(BaseModel):
    choices: list[Choice]                    # used: wrong is an error
    usage: OrNone[dict[str, int]] = None     # nice to have: wrong counts as absent
"""

from __future__ import annotations

import json
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, FailFast, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

MAX_ERROR_CHARS = 500
ERROR_FIELDS = ("detail", "error", "message", "msg", "title")
ValueT = TypeVar("ValueT")


def _none_if_invalid(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validate(value)
    except ValidationError:
        return None


def _empty_if_null(value: Any) -> Any:
    return [] if value is None else value


OrNone = Annotated[ValueT | None, WrapValidator(_none_if_invalid)]
ManyOrNull = Annotated[list[ValueT], FailFast(), BeforeValidator(_empty_if_null)]


def find_error_message(body: bytes) -> str | None:
    """What a JSON answer says went wrong, in the server's own words and on one line; None where it does not say.

    They stand under `detail` (RFC 9457; FastAPI, whose list names fields), `error` or `error.message` (OpenAI's shape),
    or `message` alone (older vLLM); Google puts a list around it.
    """
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return None
    said = said[0] if isinstance(said, list) and said else said
    words = " ".join(_read_words(said).split()) if isinstance(said, dict) else ""
    return words[:MAX_ERROR_CHARS] or None


def _read_words(said: Any, depth: int = 0) -> str:
    if isinstance(said, str):
        return said
    # nobody nests a sentence deeper
    if depth > 3:
        return ""
    if isinstance(said, list):
        return "; ".join(filter(None, (_read_words(each, depth + 1) for each in said)))
    if not isinstance(said, dict):
        return ""
    words = next(filter(None, (_read_words(said.get(name), depth + 1) for name in ERROR_FIELDS)), "")
    place = said.get("loc")
    return f"{'.'.join(map(str, place))}: {words}" if words and isinstance(place, list) else words
