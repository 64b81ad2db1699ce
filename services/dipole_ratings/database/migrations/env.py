"""Alembic's entry: runs inside the transaction that `upgrade_database` opened and locked."""

from alembic import context

from dipole_ratings.database.tables import RatingsBase

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=RatingsBase.metadata,
    render_as_batch=True,
    compare_type=True,
)
context.run_migrations()
