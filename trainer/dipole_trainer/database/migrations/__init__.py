"""Alembic's migrations of the jobs database; `dipole_trainer.database.engine.upgrade_database` runs them."""
