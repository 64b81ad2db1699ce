"""One handler for every error: RFC 9457 problem+json, the database's failures too."""

from __future__ import annotations

from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from dipole.database.failures import describe_database_error, explain_database_error
from dipole.errors import DipoleError
from dipole.web import asgi
from dipole_ratings.database.engine import RATINGS_DATABASE

log = structlog.get_logger()


def install_error_handlers(app: FastAPI) -> None:
    for kind in (DipoleError, RequestValidationError, HTTPException, SQLAlchemyError):
        app.add_exception_handler(kind, answer_error)


def answer_error(request: Any, error: Exception) -> Any:
    """The answer to an error. Raises what is a fault of ours, for the log and a 500."""
    if isinstance(error, SQLAlchemyError):
        explained = explain_database_error(error, RATINGS_DATABASE)
        if explained is None:
            raise error
        log.warning("database_unavailable", error=describe_database_error(error))
        error = explained
    return asgi.answer_problem(request, error)
