"""Alembic's migrations of the jobs database; `dipole_trainer.database.engine.upgrade` runs them."""
