"""Problem documents (RFC 9457): what any of our errors, and any invalid request, looks like to its caller."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from dipole.errors import (
    DependencyUnavailable,
    DipoleError,
    InvalidInput,
    Overloaded,
    Unauthorized,
    is_storage_full,
)
from dipole.protocol.schemas import MAX_FIELD_ERRORS, FieldError, Problem

PROBLEM_JSON = "application/problem+json"
NOT_AN_OBJECT = ("dict_type", "model_attributes_type", "model_type")
DISK_RETRY_S = 30.0  # a full disk is looked after by somebody


def format_field_path(location: Sequence[str | int]) -> str:
    """('candidates', 3, 'image', 'data') -> 'candidates[3].image.data'."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path


def make_problem(
    status: int, detail: str, *, slug: str | None = None, errors: Iterable[FieldError] = (), title: str | None = None
) -> Problem:
    """A problem document; its title is the status phrase unless given."""
    return Problem(
        type=f"urn:dipole:problem:{slug}" if slug else "about:blank",
        title=title or HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        errors=list(errors),
    )


def _problem_of_validation(found: Sequence[Mapping[str, Any]]) -> Problem:
    """Pydantic's error list, with the location a caller would write and at most MAX_FIELD_ERRORS of them."""
    errors = []
    for error in found[:MAX_FIELD_ERRORS]:
        location = list(error["loc"])
        if location and location[0] in ("body", "query", "path", "header"):
            location = location[1:]
        # `loc` of what is no JSON is where its text breaks off
        if error["type"] == "json_invalid":
            location = []
        message = _describe_error(error, is_body=not location)
        errors.append(FieldError(field=format_field_path(location) or "body", message=message))
    more = f" ({len(found) - len(errors)} more errors)" if len(found) > len(errors) else ""
    first = errors[0]
    named = first.message.startswith(f"{first.field}: ")  # our own sentences do that
    detail = first.message if named else f"{first.field}: {first.message}"
    return make_problem(422, detail + more, slug=InvalidInput.slug, errors=errors)


def _describe_error(error: Mapping[str, Any], *, is_body: bool) -> str:
    """A validation's message, in HTTP's words where pydantic's are Python's: a body without Content-Type is no JSON."""
    if error["type"] == "json_invalid":
        return f"is not JSON: {error.get('ctx', {}).get('error', error['msg'])}"
    if is_body and error["type"] in ("missing", *NOT_AN_OBJECT):
        return "must be a JSON object, sent with Content-Type: application/json"
    return "must be a JSON object" if error["type"] in NOT_AN_OBJECT else error["msg"].removeprefix("Value error, ")


def problem_of_refusal(error: Exception) -> tuple[Problem, dict[str, str]]:
    """As `problem_of`, in the handler of a framework's RequestValidationError, and of nothing else that lists errors:
    a model of ours that is wrong, such as an answer, is no fault of the caller.
    """
    listed = getattr(error, "errors", None)
    return (_problem_of_validation(listed()), {}) if callable(listed) else problem_of(error)


def problem_of(error: BaseException) -> tuple[Problem, dict[str, str]]:
    """The problem and the extra headers that stand for an exception. The unexpected gives nothing of itself away."""
    if not isinstance(error, DipoleError) and is_storage_full(error):
        error = DependencyUnavailable("a disk of this server is full: send the request again", retry_after=DISK_RETRY_S)
    if isinstance(error, DipoleError):
        fields = []
        if isinstance(error, InvalidInput) and error.field:
            fields = [FieldError(field=error.field, message=str(error))]
        headers = {}
        if isinstance(error, Overloaded):
            headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
        if isinstance(error, Unauthorized):
            headers["WWW-Authenticate"] = "Bearer"
        return make_problem(error.status, str(error), slug=error.slug, errors=fields), headers
    status = getattr(error, "status_code", None)  # Starlette's HTTPException
    if isinstance(status, int):
        detail = str(getattr(error, "detail", "") or HTTPStatus(status).phrase)
        return make_problem(status, detail), dict(getattr(error, "headers", None) or {})
    return make_problem(
        500, "the server failed; its log has the reason under this answer's X-Request-ID", slug="internal"
    ), {}
