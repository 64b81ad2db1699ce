"""Alembic's migrations of the jobs database; `dipole_trainer.database.upgrade` runs them."""
