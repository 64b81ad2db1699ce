"""What an error of the database means, in words that may be logged and answered: never with the values of a row."""

from __future__ import annotations

from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, ProgrammingError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from dipole.errors import DependencyUnavailable

RETRY_AFTER_S = 5.0  # it is being restarted, or others give their connections back
AWAY_ERRORS = (OperationalError, InterfaceError, PoolTimeout)
"""What is raised while the database is away, full, locked or out of connections: the same may succeed later."""
_WRONG_TABLES = {
    "42P01": "it lacks a table: run `dipole db upgrade`",
    "42703": "it lacks a column: run `dipole db upgrade`",
    "42501": "its user may not do this: grant it rights on the tables",
}
_READ_ONLY_STATE = "25006"  # a standby, or a primary that is being replaced


def hide_values(context: ExceptionContext) -> None:
    """An engine's `handle_error`: only the first line of what PostgreSQL says stays; DETAIL repeats the row."""
    for error in (context.original_exception, context.sqlalchemy_exception):
        if error is not None and error.args and isinstance(error.args[0], str):
            error.args = (error.args[0].partition("\n")[0], *error.args[1:])


def describe_database_error(error: SQLAlchemyError) -> str:
    """What the driver says, in one line."""
    if isinstance(error, PoolTimeout):
        return "every connection of this process is in use"
    said = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return str(said).partition("\n")[0] or type(said).__name__


def explain_database_error(error: SQLAlchemyError) -> DependencyUnavailable | None:
    """The error that a caller is told; None where the database did not fail and we are to blame."""
    state = getattr(getattr(error, "orig", None), "sqlstate", None) or ""
    if isinstance(error, ProgrammingError) and state in _WRONG_TABLES:
        return DependencyUnavailable(
            f"the jobs database is not ready: {_WRONG_TABLES[state]}", retry_after=RETRY_AFTER_S
        )
    if isinstance(error, AWAY_ERRORS) or state == _READ_ONLY_STATE:
        said = describe_database_error(error)
        if said.startswith(("no such table", "no such column")):
            said += ": run `dipole db upgrade`"
        return DependencyUnavailable(f"the jobs database does not answer: {said}", retry_after=RETRY_AFTER_S)
    return None
