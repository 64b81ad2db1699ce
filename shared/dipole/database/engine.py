"""One way to open a database of ours, SQLite or PostgreSQL: the trainer's jobs, the rating service's answers.

SQLite runs in WAL mode with foreign keys on, waits for locks, and takes its write lock when a writing transaction
begins, so that a read followed by a write cannot fail half-way. Its files are for their owner alone: they hold prompts
and keys. PostgreSQL is asked without prepared statements, which poolers such as pgbouncer lose between transactions.
`now()` is the database's own clock in Unix seconds. What errors say of values stays out of logs (failures.py).
"""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path
from typing import Any

import tenacity
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import Float

from dipole.database.failures import JOBS_DATABASE, DatabaseName, hide_values
from dipole.errors import ConfigurationError
from dipole.private_files import hide_from_others, make_private_file

BUSY_TIMEOUT_S = 30
CONNECT_TIMEOUT_S = 10  # for PostgreSQL to take a connection, where the URL gives no connect_timeout
POOL_TIMEOUT_S = 10  # for a connection of the pool: a caller who waits longer is told to come back
LOCK_TIMEOUT_S = 10  # for PostgreSQL's locks, but those of migrations: a backup or an operator may hold a table's
# libpq's, where the URL gives no others: a host that went without a word is noticed in half a minute, not in an hour
LOST_HOST_OPTIONS = {"keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 30_000}
_SEVERAL_HOSTS = re.compile(
    r"(?P<start>[a-z+0-9]+://(?:[^@]*@)?)(?P<hosts>[^/?@]*,[^/?@]*)(?P<name>/[^?]*)?(?P<query>\?.*)?"
)
_HOST = re.compile(r"(\[[^\]]*\]|[^:,]+)(?::([^,]*))?(?:,|$)")


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
    """An engine and two kinds of transaction: `reading()` and `writing()`, both context managers of a Session.

    `named` is what errors call it. Raises ConfigurationError for a URL that cannot be used.
    """

    def __init__(self, url: str, named: DatabaseName = JOBS_DATABASE) -> None:
        self.named = named
        self.engine = _create_engine(url, named.setting)
        reading, writing = (
            self.engine.execution_options(sqlite_begin=begin, lock_timeout_s=LOCK_TIMEOUT_S)
            for begin in ("DEFERRED", "IMMEDIATE")
        )
        self.reading = sessionmaker(reading, expire_on_commit=False)
        self.writing = sessionmaker(writing, expire_on_commit=False).begin

    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    def close(self) -> None:
        self.engine.dispose()


def _create_engine(url: str, setting: str) -> Engine:
    parsed = _parse_url(url, setting)
    match parsed.get_backend_name():
        case "sqlite":
            engine = _create_sqlite_engine(parsed, setting)
        case "postgresql":
            engine = _create_postgresql_engine(parsed, setting)
        case other:
            raise ConfigurationError(f"{setting} names {other}: sqlite and postgresql are supported")
    event.listen(engine, "handle_error", hide_values)
    return engine


def _parse_url(url: str, setting: str) -> URL:
    """SQLAlchemy's URL of one; `postgres://` and several hosts, as libpq takes them, are written as it wants them."""
    url = re.sub("^postgres(?=://)", "postgresql", url)
    if url.startswith("postgresql") and (match := _SEVERAL_HOSTS.fullmatch(url)):
        found = _HOST.findall(match["hosts"])
        hosts, ports = (",".join(each[part].strip("[]") for each in found) for part in (0, 1))
        url = f"{match['start']}{match['name'] or '/'}{match['query'] or '?'}&host={hosts}&port={ports}"
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
            parsed.get_dialect()().create_connect_args(parsed)  # reads hosts and ports, as a connection does
        return parsed
    except (ArgumentError, ValueError):
        raise ConfigurationError(
            f"{setting} is not an SQLAlchemy URL: write sqlite:///path/to/dipole.db or "
            "postgresql://user:password@host:5432/database, with %-escapes in the password"
        ) from None  # what the error says repeats the URL, and so the password


def _create_sqlite_engine(url: URL, setting: str) -> Engine:
    if not url.database or url.database == ":memory:":
        raise ConfigurationError(f"{setting}: several processes share it, so it cannot be in memory")
    if not url.database.startswith("file:"):
        _make_file_private(Path(url.database), setting)
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S}, hide_parameters=True)
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _make_file_private(path: Path, setting: str) -> None:
    """SQLite gives -wal and -shm the permissions of its file."""
    try:
        make_private_file(path)
    except OSError as error:
        raise ConfigurationError(f"{setting}: {path} cannot be written: {error.strerror}") from error
    for suffix in ("-wal", "-shm"):
        hide_from_others(path.with_name(path.name + suffix))


def _create_postgresql_engine(url: URL, setting: str) -> Engine:
    """Parameters of the URL are libpq's (sslmode, target_session_attrs, ...), and psycopg's prepare_threshold."""
    given = url.query.get("prepare_threshold", "none")
    if given != "none" and not str(given).isdecimal():
        raise ConfigurationError(f"{setting}: prepare_threshold={given} is neither a number nor none")
    options: dict[str, Any] = {"prepare_threshold": None if given == "none" else int(str(given))}
    ours = {"connect_timeout": CONNECT_TIMEOUT_S, **LOST_HOST_OPTIONS}
    options |= {name: value for name, value in ours.items() if name not in url.query}
    engine = create_engine(
        url.difference_update_query(["prepare_threshold"]),
        connect_args=options,
        pool_pre_ping=True,
        pool_timeout=POOL_TIMEOUT_S,
        hide_parameters=True,
    )
    event.listen(engine, "begin", _bound_lock_waits)
    return engine


def _bound_lock_waits(connection: Connection) -> None:
    """Of this transaction alone: poolers such as pgbouncer hand the connection on after it."""
    if seconds := connection.get_execution_options().get("lock_timeout_s"):
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{seconds * 1000:.0f}ms'")


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
