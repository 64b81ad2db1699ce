"""The ratings database: migrations make what the tables say, on either database, and go down again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from dipole.database import column_types
from dipole.database.migrations import alembic_config
from dipole_ratings.database.engine import MIGRATIONS, open_database, upgrade_database
from dipole_ratings.database.tables import RatingsBase


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


def test_every_column_of_text_or_whole_numbers_is_checked() -> None:
    """A plain type would be one more 500 that a caller can cause."""
    checked = (column_types._CheckedText, column_types._CheckedInteger)
    for table in RatingsBase.metadata.tables.values():
        for column in table.columns:
            if not isinstance(column.type, sa.JSON | sa.Float | sa.Boolean | sa.LargeBinary):
                assert isinstance(column.type, checked), column
