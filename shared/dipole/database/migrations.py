"""Bring a database's tables to this version's shape: Alembic's migrations of one folder, under a lock."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.schema import CreateSchema

from dipole.database.engine import Database
from dipole.database.failures import JOBS_DATABASE, DatabaseName, describe_database_error
from dipole.errors import ConfigurationError


def upgrade_tables(database_url: str, migrations: Path, named: DatabaseName = JOBS_DATABASE) -> None:
    """Run what `migrations` has and the database has not. Safe from several processes at once, and again.

    Raises ConfigurationError where the database is away, or does not let this user change its tables.
    """
    database = Database(database_url, named)
    try:
        with database.engine.execution_options(sqlite_begin="IMMEDIATE").begin() as connection:
            if not database.is_sqlite():
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7046029254386353131)")
                _create_schema(connection)
            command.upgrade(alembic_config(connection, migrations), "head")
    except SQLAlchemyError as error:
        shown = database.engine.url.render_as_string()
        raise ConfigurationError(
            f"{named.setting} {shown}: the tables cannot be brought up to date: {describe_database_error(error)}. "
            f"Run `{named.upgrade_command}` where the database answers, as a user who may create and alter its tables"
        ) from error
    finally:
        database.close()


def _create_schema(connection: Connection) -> None:
    """The schema that a URL chooses (`?options=-csearch_path%3Dratings`), where it is not there yet."""
    if connection.exec_driver_sql("SELECT current_schema()").scalar() is None:
        wanted = str(connection.exec_driver_sql("SHOW search_path").scalar()).partition(",")[0].strip(' "')
        connection.execute(CreateSchema(wanted, if_not_exists=True))


def alembic_config(connection: Connection, migrations: Path) -> Config:
    """What Alembic is told: where the migrations are, and the open transaction that they run in."""
    config = Config()
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
