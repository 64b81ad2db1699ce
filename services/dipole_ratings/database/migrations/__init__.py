"""Alembic's migrations of the ratings database; `dipole_ratings.database.engine.upgrade_database` runs them."""
