"""One handler for every error: RFC 9457 problem+json, with the `error` member that OpenAI's clients read beside it."""

from __future__ import annotations

from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from dipole.database.failures import describe_database_error, explain_database_error
from dipole.errors import DipoleError, InvalidInput
from dipole.protocol import problems
from dipole.protocol.schemas import FieldError, Problem
from dipole.settings import FOLLOWS_FROM_WRONG
from dipole.web import asgi
from dipole.web.openapi import document_problems

log = structlog.get_logger()


def install_error_handlers(app: FastAPI) -> None:
    for kind in (DipoleError, RequestValidationError, HTTPException, SQLAlchemyError):
        app.add_exception_handler(kind, answer_error)
    example = _add_error_object(
        problems.make_problem(
            422,
            "method.drpo.positives + method.drpo.negatives = 16 exceeds candidates = 8: lower them",
            slug=InvalidInput.slug,
            errors=[FieldError(field="method.drpo.positives", message="exceeds candidates")],
        )
    )

    def build_document() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                tags=app.openapi_tags,
            )
            for path in document["paths"].values():
                for operation in path.values():
                    operation["responses"].setdefault("default", {"description": "Any error."})
                    operation["responses"]["default"]["content"] = {problems.PROBLEM_JSON: _problem_content(example)}
            document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            document["security"] = [{}, {"key": []}]
            app.openapi_schema = document_problems(document, example)
        return app.openapi_schema

    app.openapi = build_document  # type: ignore[method-assign]


def _problem_content(example: Problem) -> dict[str, Any]:
    return {"schema": {"$ref": "#/components/schemas/Problem"}, "example": example.model_dump(exclude_none=True)}


def answer_error(_: Any, error: Exception) -> Any:
    """The answer to an error. Raises what is a fault of ours, for the log and a 500."""
    if isinstance(error, SQLAlchemyError):
        explained = explain_database_error(error)
        if explained is None:
            raise error
        log.warning("database_unavailable", error=describe_database_error(error))
        error = explained
    if isinstance(error, RequestValidationError):
        error = RequestValidationError(
            [_named_error(each) for each in error.errors() if each["type"] != FOLLOWS_FROM_WRONG]
        )
    document, headers = problems.problem_of_refusal(error)
    return asgi.ProblemResponse(_add_error_object(document), headers)


def _named_error(error: dict[str, Any]) -> dict[str, Any]:
    """A validator of a whole object has no location of its own; an InvalidInput that it raised names the field."""
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, InvalidInput) and cause.field:
        return {**error, "loc": (*error["loc"], cause.field)}
    return error


def _add_error_object(document: Problem) -> Problem:
    kind = "invalid_request_error" if document.status < 500 else "server_error"
    param = document.errors[0].field if document.errors else None
    code = document.type.removeprefix("urn:dipole:problem:").replace("-", "_")
    error = {"message": document.detail, "type": kind, "param": param, "code": code if code != "about:blank" else None}
    return document.model_copy(update={"error": error})
