"""What an error of the database means, in words that may be logged and answered: never with the values of a row."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from dipole.errors import DependencyUnavailable


@dataclass(frozen=True)
class DatabaseName:
    """What people call a database: in sentences, the setting of its URL, and the command that makes its tables."""

    name: str
    setting: str
    upgrade_command: str

    @property
    def downgrade_command(self) -> str:
        return self.upgrade_command.replace("upgrade", "downgrade")


JOBS_DATABASE = DatabaseName("the jobs database", "DIPOLE_DATABASE_URL", "dipole db upgrade")
RETRY_AFTER_S = 5.0  # it is being restarted, or others give their connections back
AWAY_ERRORS = (OperationalError, InterfaceError, PoolTimeout)
"""What is raised while the database is away, full, locked or out of connections: the same may succeed later."""
_UPGRADE = "has not the tables of this version: run `{command}`"
_STATES = {
    "42P01": _UPGRADE,
    "42703": _UPGRADE,
    "55P03": "is locked by another process",
    "42501": "does not let its user do this: grant it rights on the tables",
    "25006": "takes no writes now",  # a standby, or a primary that is being replaced
}
_WORDS = {
    "no such table": _UPGRADE,
    "no such column": _UPGRADE,
    "too many": "has no connection left",
    "no more connections": "has no connection left",
    "remaining connection slots": "has no connection left",
    "locked": "is locked by another process",
    "full": "is on a disk that is full",
    "No space left": "is on a disk that is full",
}


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


def is_out_of_reach(error: SQLAlchemyError) -> bool:
    """Whether PostgreSQL cannot be reached, or is starting or full, rather than that it answered with a refusal."""
    said = describe_database_error(error)
    is_passing = any(words in said for words in ("starting up", "shutting down", "too many", "connection slots"))
    return isinstance(error, OperationalError) and (is_passing or "FATAL" not in said)


def explain_database_error(error: SQLAlchemyError, named: DatabaseName = JOBS_DATABASE) -> DependencyUnavailable | None:
    """The error that a caller is told, without addresses and names; None where we are to blame, not the database."""
    state = getattr(getattr(error, "orig", None), "sqlstate", None) or ""
    if state not in _STATES and not isinstance(error, AWAY_ERRORS):
        return None
    said = describe_database_error(error)
    words = (reason for word, reason in _WORDS.items() if word in said)
    reason = _STATES.get(state) or next(words, "does not answer")
    if isinstance(error, PoolTimeout):
        reason = f"is out of connections: {said}"
    if reason == _UPGRADE:
        reason = _UPGRADE.format(command=named.upgrade_command)
    return DependencyUnavailable(f"{named.name} {reason}", retry_after=RETRY_AFTER_S)
