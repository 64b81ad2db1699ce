"""The ratings database: migrations make what the tables say, on either database, and go down again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext

from dipole.database import column_types
from dipole.database.migrations import alembic_config
from dipole_ratings.database.engine import MIGRATIONS, open_database, upgrade_database
from dipole_ratings.database.tables import RatingsBase
from dipole_trainer.database import engine as jobs


def test_migrations_make_the_tables_and_go_down_again(ratings_url: str) -> None:
    """Run twice they change nothing; a downgrade leaves no table but alembic's own."""
    upgrade_database(ratings_url)
    upgrade_database(ratings_url)
    database = open_database(ratings_url)
    with database.engine.begin() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, RatingsBase.metadata) == []
    with database.engine.begin() as connection:
        command.downgrade(alembic_config(connection, MIGRATIONS), "base")
    assert sa.inspect(database.engine).get_table_names() == ["alembic_version"]
    database.close()


FIRST = "0001"


def any_value(column: sa.Column[Any]) -> Any:
    """Something that a column of its type may hold; of a foreign key what its table's only row has."""
    if column.foreign_keys:
        (key,) = column.foreign_keys
        return any_value(key.column)
    by_type: dict[type, Any] = {
        sa.JSON: {"a": [1, None]}, sa.Boolean: True, sa.Float: 2.5, sa.Integer: 1, sa.LargeBinary: b"png",
        sa.String: f"ä {column.name}"[:16],
    }  # fmt: skip
    return next(value for kind, value in by_type.items() if isinstance(column.type, kind))


def test_the_first_release_s_rows_go_to_this_version_and_back(ratings_url: str) -> None:
    """A row in each of its tables is read through this version's, and is as it was on the way back."""
    database = open_database(ratings_url)

    def migrate(move: Callable[[Config, str], None], revision: str) -> None:
        with database.engine.execution_options(sqlite_begin="IMMEDIATE").begin() as connection:
            move(alembic_config(connection, MIGRATIONS), revision)

    def rows_of(tables: Iterable[sa.Table]) -> dict[str, dict[str, Any]]:
        with database.engine.connect() as connection:
            return {table.name: dict(connection.execute(sa.select(table)).mappings().one()) for table in tables}

    migrate(command.upgrade, FIRST)
    first = sa.MetaData()
    first.reflect(database.engine)
    first.remove(first.tables["alembic_version"])
    written = {}
    with database.engine.begin() as connection:
        for table in first.sorted_tables:
            written[table.name] = {column.name: any_value(column) for column in table.columns}
            connection.execute(sa.insert(table).values(written[table.name]))
    migrate(command.upgrade, "head")
    now = rows_of(table for table in RatingsBase.metadata.sorted_tables if table.name in written)
    assert {name: {column: now[name][column] for column in row} for name, row in written.items()} == written
    migrate(command.downgrade, FIRST)
    assert rows_of(first.sorted_tables) == written
    database.close()


def test_jobs_and_ratings_share_a_server_in_schemas_of_their_own(postgres_url: str) -> None:
    """The schema that a URL names is made where it is missing; each keeps its own tables and version in one database.

    So Compose and Kubernetes need one PostgreSQL, and none of its start-up scripts.
    """
    ours = f"{postgres_url}&options=-csearch_path%3Dratings"
    jobs.upgrade_database(postgres_url)
    upgrade_database(ours)
    upgrade_database(ours)
    database = open_database(postgres_url)
    inspector = sa.inspect(database.engine)
    public, ratings = (set(inspector.get_table_names(schema=schema)) for schema in ("public", "ratings"))
    database.close()
    assert public & ratings == {"alembic_version"}
    assert {"jobs"} < public
    assert ratings == {"alembic_version", *RatingsBase.metadata.tables}


def test_every_column_of_text_or_whole_numbers_is_checked() -> None:
    """A plain type would be one more 500 that a caller can cause."""
    checked = (column_types._CheckedText, column_types._CheckedInteger)
    for table in RatingsBase.metadata.tables.values():
        for column in table.columns:
            if not isinstance(column.type, sa.JSON | sa.Float | sa.Boolean | sa.LargeBinary):
                assert isinstance(column.type, checked), column
