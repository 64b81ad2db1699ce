"""`dipole db …`: the tables of the databases, forward to this version's or back to an older one's."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any

import typer

from dipole.cli.optional_imports import import_optional
from dipole.cli.terminal import err, out, printable
from dipole.errors import ConfigurationError
from dipole.settings import PlatformSettings, load_settings

DATABASE_WAIT_S = 90.0  # for a PostgreSQL that starts beside whoever upgrades it, as in a cluster
Revision = Annotated[str, typer.Argument(help="The revision to go back to, as in 0009; `base` is without any table.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]

app = typer.Typer(no_args_is_help=True, help="The databases of jobs and of ratings.")


@app.command("upgrade")
def upgrade_database() -> None:
    """Bring the jobs database to this version's schema; harmless when it is. A PostgreSQL that starts is waited for."""
    url = load_settings(PlatformSettings).database_url
    import_optional("dipole_trainer.database.engine", "api").upgrade_database(url, wait_s=DATABASE_WAIT_S)


@app.command("upgrade-ratings")
def upgrade_ratings_database() -> None:
    """Bring the ratings database to this version's schema, as the rating service does when it starts. A PostgreSQL that
    starts is waited for.
    """
    settings = load_settings(import_optional("dipole_ratings.settings", "ratings").RatingsSettings)
    import_optional("dipole_ratings.database.engine", "ratings").upgrade_database(
        settings.ratings_database_url, wait_s=DATABASE_WAIT_S
    )


@app.command("downgrade")
def downgrade_database(revision: Revision, yes: YesOption = False) -> None:
    """Take the jobs database's tables back to an older version's, or empty it. What those have no place for is lost."""
    engine = import_optional("dipole_trainer.database.engine", "api")
    _downgrade(engine.Database(load_settings(PlatformSettings).database_url), engine.MIGRATIONS, revision, yes)


@app.command("downgrade-ratings")
def downgrade_ratings_database(revision: Revision, yes: YesOption = False) -> None:
    """Take the ratings database's tables back to an older version's, or empty it. What those have no place for is
    lost.
    """
    settings = load_settings(import_optional("dipole_ratings.settings", "ratings").RatingsSettings)
    engine = import_optional("dipole_ratings.database.engine", "ratings")
    _downgrade(engine.open_database(settings.ratings_database_url), engine.MIGRATIONS, revision, yes)


def _downgrade(database: Any, folder: Path, revision: str, yes: bool) -> None:
    migrations = import_optional("dipole.database.migrations", "api")
    failures = import_optional("dipole.database.failures", "api")
    name, url = database.named.name, database.engine.url.render_as_string()
    with contextlib.closing(database):
        try:
            current, undone = migrations.plan_downgrade(database, folder, revision)
            if not undone:
                out.print(f"{name.capitalize()} is at {revision}: there is nothing to undo.")
                return
            err.print(f"{name.capitalize()} {printable(url)} goes from {current} back to {revision}. This is undone:")
            for each in undone:
                err.print(f"  {each.revision}: {printable(each.about)}")
            err.print("What is stored of it is lost. End whatever uses the database first, and take a backup.")
            if not yes:
                typer.confirm("Go back?", abort=True, err=True)
            migrations.downgrade_tables(database, folder, revision)
        except import_optional("sqlalchemy.exc", "api").SQLAlchemyError as error:
            said = failures.describe_database_error(error)
            raise ConfigurationError(f"{database.named.setting} {url}: nothing was undone: {said}") from error
    out.print(f"{name.capitalize()} is at {revision}.")
