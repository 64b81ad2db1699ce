"""One way to open the jobs database, SQLite or PostgreSQL, and to bring its tables up to date.

SQLite runs in WAL mode with foreign keys on, waits for locks, and takes its write lock when a writing transaction
begins, so that a read followed by a write cannot fail half-way. `now()` is the database's own clock in Unix seconds.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import tenacity
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import Float

from dipole.errors import ConfigurationError

BUSY_TIMEOUT_S = 30
MIGRATIONS = Path(__file__).parent / "migrations"


class now(FunctionElement[float]):
    """Unix seconds by the database's clock, at the statement rather than at the transaction's start."""

    type = Float()
    inherit_cache = True
    name = "now"


@compiles(now, "sqlite")
def _now_sqlite(element: now, compiler: Any, **kw: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _now_postgresql(element: now, compiler: Any, **kw: Any) -> str:
    return "(extract(epoch from clock_timestamp())::float8)"


class Database:
    """An engine and two kinds of transaction: `reading()` and `writing()`, both context managers of a Session."""

    def __init__(self, url: str) -> None:
        self.engine = _create_engine(url)
        self.reading = sessionmaker(self.engine, expire_on_commit=False)
        self.writing = sessionmaker(
            self.engine.execution_options(sqlite_begin="IMMEDIATE"), expire_on_commit=False
        ).begin

    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    def close(self) -> None:
        self.engine.dispose()


def _create_engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigurationError(f"DIPOLE_DATABASE_URL is not an SQLAlchemy URL: {error}") from error
    match parsed.get_backend_name():
        case "sqlite":
            if not parsed.database or parsed.database == ":memory:":
                raise ConfigurationError("DIPOLE_DATABASE_URL: several processes share it, so it cannot be in memory")
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            engine = create_engine(parsed, connect_args={"timeout": BUSY_TIMEOUT_S})
            event.listen(engine, "connect", _configure_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
            return engine
        case "postgresql":
            return create_engine(parsed.set(drivername="postgresql+psycopg"), pool_pre_ping=True)
        case other:
            raise ConfigurationError(f"DIPOLE_DATABASE_URL names {other}: sqlite and postgresql are supported")


def _configure_sqlite(connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
    assert isinstance(connection, sqlite3.Connection)
    # the driver must not begin by itself: _begin_sqlite does, with the right lock
    connection.isolation_level = None
    for pragma in (f"busy_timeout={BUSY_TIMEOUT_S * 1000}", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")
    _retry_while_locked(
        connection.execute, "PRAGMA journal_mode=WAL"
    )  # busy_timeout does not apply to switching a new file to WAL, so retry


_retry_while_locked = tenacity.Retrying(
    retry=tenacity.retry_if_exception_type(sqlite3.OperationalError),
    wait=tenacity.wait_random(0.01, 0.1),
    stop=tenacity.stop_after_delay(BUSY_TIMEOUT_S),
    reraise=True,
)


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql(f"BEGIN {connection.get_execution_options().get('sqlite_begin', 'DEFERRED')}")


def upgrade_database(database_url: str) -> None:
    """Bring the tables to this version's shape. Safe to run from several processes at once, and to run again."""
    database = Database(database_url)
    try:
        with database.engine.execution_options(sqlite_begin="IMMEDIATE").begin() as connection:
            if not database.is_sqlite():
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7046029254386353131)")
            command.upgrade(_alembic_config(connection), "head")
    finally:
        database.close()


def _alembic_config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


__all__ = ["Database", "Session", "now", "upgrade_database"]
