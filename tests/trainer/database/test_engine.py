"""Opening the jobs database: URLs as people have them, poolers, refusals in sentences, no value of a row in a log."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

from dipole.database import engine as database_engine
from dipole.database.failures import describe_database_error, explain_database_error
from dipole.errors import ConfigurationError, DependencyUnavailable
from dipole_trainer.database.engine import Database, upgrade_database
from dipole_trainer.database.tables import JobRow, RewardRow

SECRET = "a-key-of-an-endpoint"


# ---- URLs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgres://u:p@h/db", {"host": "h", "dbname": "db", "user": "u", "password": "p"}),
        ("postgresql://u:p%40@h:5433/db", {"host": "h", "port": 5433, "password": "p@"}),
        ("postgresql+psycopg2://u@h/db", {"host": "h", "user": "u"}),
        ("postgresql+asyncpg://u@h/db", {"host": "h", "user": "u"}),
        ("postgres://u:a,b@h1:5432,h2:5433/db", {"host": "h1,h2", "port": "5432,5433", "password": "a,b"}),
        ("postgresql://h1,h2:5433", {"host": "h1,h2", "port": ",5433"}),
        ("postgresql://u@[::1]:5432,[::2]/db", {"host": "::1,::2", "port": "5432,"}),
        (
            "postgresql://h1:1,h2:2/db?target_session_attrs=read-write&sslmode=require",
            {"host": "h1,h2", "port": "1,2", "target_session_attrs": "read-write", "sslmode": "require"},
        ),
        ("postgresql://u@/db?host=/run/postgresql", {"host": "/run/postgresql", "user": "u"}),
        ("postgresql://h/db?connect_timeout=3&options=-c%20search_path%3Dx", {"options": "-c search_path=x"}),
    ],
)
def test_urls_of_postgresql_are_taken_as_people_have_them(url: str, expected: dict[str, object]) -> None:
    """Heroku's scheme, other drivers' names, several hosts, sockets, and libpq's own parameters."""
    database = Database(url)
    _, arguments = database.engine.dialect.create_connect_args(database.engine.url)
    assert expected.items() <= arguments.items()
    database.close()


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        f"postgresql://u:{SECRET}@h:port/db",
        f"postgresql://u:{SECRET}@h1,h2:port/db",
        f"mysql://u:{SECRET}@h/db",
        f"postgresql://u:{SECRET}@h/db?prepare_threshold=often",
        "sqlite://",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigurationError, match="DIPOLE_DATABASE_URL") as caught:
        Database(url)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


# ---- poolers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "prepares"), [("", False), ("&prepare_threshold=none", False), ("&prepare_threshold=0", True)]
)
def test_no_statement_is_prepared_unless_the_url_says_so(postgres_url: str, option: str, prepares: bool) -> None:
    """A pooler in transaction mode gives the next transaction another session, which does not know them."""
    database = Database(postgres_url + option)
    with database.engine.connect() as connection:
        for number in range(20):
            connection.execute(sa.select(sa.literal(number)))
        assert (connection.scalar(sa.text("SELECT count(*) FROM pg_prepared_statements")) > 0) == prepares
    database.close()


# ---- rights ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def reader_url(postgres_url: str) -> str:
    """The same database as a user who may read and not create."""
    user = f"reader_{os.getpid()}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [user]).fetchone():
            connection.execute(f"CREATE ROLE {user} LOGIN")
        connection.execute("REVOKE CREATE ON SCHEMA public FROM public")
    return postgres_url.replace("postgres:@", f"{user}@")


def test_migrations_without_rights_end_in_a_sentence(reader_url: str) -> None:
    """`dipole db upgrade` says what is lacking and what to do, and no traceback."""
    environment = {**os.environ, "DIPOLE_DATABASE_URL": reader_url}
    done = subprocess.run(
        [sys.executable, "-m", "dipole.cli", "db", "upgrade"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: DIPOLE_DATABASE_URL")
    assert "permission denied" in done.stderr
    assert "Run `dipole db upgrade`" in done.stderr
    assert "Traceback" not in done.stderr
    with pytest.raises(ConfigurationError, match="permission denied"):
        upgrade_database(reader_url)


def test_a_database_that_is_up_to_date_needs_no_rights_on_its_schema(postgres_url: str, reader_url: str) -> None:
    upgrade_database(postgres_url)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO public")
    upgrade_database(reader_url)


@pytest.mark.parametrize("folder", ["/dev/null/dipole.db", "/proc/dipole.db"])
def test_a_file_that_cannot_be_made_is_a_sentence(folder: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be written"):
        Database(f"sqlite:///{folder}")


# ---- what is said of an error ---------------------------------------------------------------------------------------


def failure_of(database: Database, statement: sa.Executable) -> sa.exc.SQLAlchemyError:
    with pytest.raises(sa.exc.SQLAlchemyError) as caught, database.writing() as session:
        session.execute(statement)
    return caught.value


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_no_value_of_a_row_is_in_an_error(request: pytest.FixtureRequest, tmp_path: Path, engine: str) -> None:
    """Parameters, and PostgreSQL's DETAIL of the failing row, hold keys and prompts; a log keeps errors for years."""
    url = f"sqlite:///{tmp_path}/jobs.db" if engine == "sqlite" else request.getfixturevalue("postgres_url")
    upgrade_database(url)
    database = Database(url)
    row = {"name": "shapes", "url": None, "key": SECRET, "description": SECRET, "created_at": 0.0}
    errors = [failure_of(database, sa.insert(RewardRow).values(row))]
    row["url"], row["name"] = "http://127.0.0.1:1", SECRET
    with database.writing() as session:
        session.execute(sa.insert(RewardRow).values(row))
    errors.append(failure_of(database, sa.insert(RewardRow).values(row)))
    for error in errors:
        assert isinstance(error, IntegrityError)
        for shown in (str(error), repr(error), str(error.orig), repr(error.orig)):
            assert SECRET not in shown
        assert explain_database_error(error) is None
    database.close()


def test_a_database_without_tables_says_how_they_are_made(tmp_path: Path, postgres_url: str) -> None:
    for url, kind in ((f"sqlite:///{tmp_path}/jobs.db", OperationalError), (postgres_url, ProgrammingError)):
        database = Database(url)
        error = failure_of(database, sa.select(JobRow))
        explained = explain_database_error(error)
        assert isinstance(error, kind)
        assert "run `dipole db upgrade`" in str(explained)
        database.close()


def test_what_is_away_or_out_of_connections_is_named(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens, a pool is used up, a server has too many: each is a DependencyUnavailable with its reason."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        away = Database(f"postgresql://127.0.0.1:{probe.getsockname()[1]}/db")
    error = failure_of(away, sa.select(1))
    assert str(explain_database_error(error)) == "the jobs database does not answer"
    assert "Connection refused" in describe_database_error(error), "the log has more"

    monkeypatch.setattr(database_engine, "POOL_TIMEOUT_S", 0.01)
    upgrade_database(postgres_url)
    full = Database(postgres_url)
    held = [full.engine.connect() for _ in range(15)]
    explained = explain_database_error(failure_of(full, sa.select(1)))
    assert isinstance(explained, DependencyUnavailable)
    assert "every connection of this process is in use" in str(explained)
    for connection in held:
        connection.close()

    with psycopg.connect(postgres_url, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(f"CREATE ROLE {name}_one LOGIN CONNECTION LIMIT 0")
    limited = Database(postgres_url.replace("postgres:@", f"{name}_one@"))
    assert "has no connection left" in str(explain_database_error(failure_of(limited, sa.select(1))))
    for database in (away, full, limited):
        database.close()


def test_a_lock_that_another_holds_is_waited_for_so_long(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it is named; the bound is the transaction's, and stays on no connection that a pooler hands on."""
    monkeypatch.setattr(database_engine, "LOCK_TIMEOUT_S", 0.05)
    upgrade_database(postgres_url)
    database = Database(postgres_url)
    with psycopg.connect(postgres_url) as operator:
        operator.execute("LOCK TABLE jobs")
        for transaction in (database.reading, database.writing):
            with pytest.raises(OperationalError) as raised, transaction() as session:
                session.execute(sa.select(JobRow))
            assert "is locked by another process" in str(explain_database_error(raised.value))
    with database.engine.connect() as connection:
        assert connection.scalar(sa.text("SHOW lock_timeout")) == "0"
    database.close()


def test_a_host_that_is_gone_without_a_word_is_noticed(postgres_url: str) -> None:
    """libpq's options for it are given, where the URL gives no others."""
    database = Database(f"{postgres_url}&tcp_user_timeout=5000")
    with database.engine.connect() as connection:
        given = connection.connection.driver_connection.info.get_parameters()  # type: ignore[union-attr]
    assert (given["keepalives_idle"], given["tcp_user_timeout"]) == ("15", "5000")
    database.close()


def test_a_connection_that_the_server_ended_is_made_anew(postgres_url: str) -> None:
    """A restart of the server costs the transaction that it met, and no later one."""
    database = Database(postgres_url)
    with database.writing() as session:
        session.execute(sa.select(1))
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        others = "datname = current_database() AND pid <> pg_backend_pid()"
        connection.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")
    with database.writing() as session:
        assert session.scalar(sa.select(1)) == 1
    database.close()


# ---- files ----------------------------------------------------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_sqlite_files_are_their_owners_alone(tmp_path: Path) -> None:
    """The folder that is made for it, the file, its log and its index; also those that an earlier version made."""
    file = tmp_path / "home" / "dipole.db"
    upgrade_database(f"sqlite:///{file}")
    assert (mode(file.parent), mode(file)) == (0o700, 0o600)
    file.chmod(0o644)
    database = Database(f"sqlite:///{file}")
    with database.writing() as session:
        session.execute(sa.insert(RewardRow).values(name="a", url="http://x", description="", created_at=0.0))
        files = sorted(file.parent.iterdir())
        assert [each.name for each in files] == ["dipole.db", "dipole.db-shm", "dipole.db-wal"]
        assert {mode(each) for each in files} == {0o600}
    database.close()


def test_a_folder_that_is_there_stays_as_somebody_made_it(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o755)
    upgrade_database(f"sqlite:///{folder}/dipole.db")
    assert (mode(folder), mode(folder / "dipole.db")) == (0o755, 0o600)


# ---- upgrading ------------------------------------------------------------------------------------------------------


def upgrading(url: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "DIPOLE_DATABASE_URL": url}
    command = [sys.executable, "-m", "dipole.cli", "db", "upgrade"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_postgresql_that_starts_is_waited_for(postgres_url: str, tmp_path: Path) -> None:
    """Its socket comes once somebody has said that it is waited for."""
    plain, _, folder = postgres_url.partition("?host=")
    later = tmp_path / "later"
    with upgrading(f"{plain}?host={later}") as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert "database_waited_for" in said
        later.symlink_to(folder)
        assert process.wait(60) == 0, process.stdout.read()
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT count(*) FROM jobs").fetchone() == (0,)


def test_a_postgresql_that_refuses_is_not_waited_for(postgres_url: str) -> None:
    """One sentence, at once."""
    with upgrading(postgres_url.replace("/test_", "/no_such_")) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        assert process.wait(60) != 0
    assert "database_waited_for" not in said
    assert "does not exist" in said
    assert "Traceback" not in said
