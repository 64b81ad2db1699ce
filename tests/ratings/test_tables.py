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
