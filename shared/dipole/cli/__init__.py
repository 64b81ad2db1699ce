"""The `dipole` command: every process and every request of the platform, in one place.

Each module here holds one group of commands as a typer app; this one joins them and prints errors. What a command
needs is imported when it runs: the help comes at once, and an image without torch or Celery still has its commands.
"""

from __future__ import annotations

import importlib.metadata
import io
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dipole.cli import evaluate, files, images, jobs, plan, ratings, rewards, serve
from dipole.cli.demos import demo
from dipole.cli.operations import audit, backup, database, doctor
from dipole.cli.terminal import err, printable
from dipole.errors import DipoleError


class _ErrorPrintingGroup(TyperGroup):
    """Prints what a user can mend as one red sentence and exits with 1; anything else is a bug with its traceback.

    That is a DipoleError, and an OSError: a file, folder, socket or disk of theirs.
    """

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        _print_any_character()
        try:
            return super().main(args, *rest, **options)
        except DipoleError as error:
            message = str(error)
        except OSError as error:
            message = _describe_os_error(error)
        err.print(f"[bold red]Error:[/] {printable(message)}")
        sys.exit(1)


def _print_any_character() -> None:
    """In a locale without our characters they are escaped instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _describe_os_error(error: OSError) -> str:
    named = " and ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    why = error.strerror or str(error) or type(error).__name__
    return f"{named}: {why}" if named else why


app = typer.Typer(
    cls=_ErrorPrintingGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Dipole: rewards as a service for finetuning one-step image generators.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"dipole {importlib.metadata.version('dipole')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Dipole: rewards as a service for finetuning one-step image generators."""


app.command("up")(serve.run_stack)
app.command("status")(serve.show_status)
app.command("doctor")(doctor.examine_setup)
app.command("audit")(audit.list_audit)
app.add_typer(serve.app, name="serve")
app.add_typer(database.app, name="db")
app.command("backup")(backup.write_backup)
app.command("restore")(backup.restore_backup)
app.add_typer(rewards.app, name="rewards")
app.add_typer(ratings.app, name="ratings")
app.add_typer(jobs.app, name="jobs")
app.add_typer(files.files_app, name="files")
app.add_typer(images.models_app, name="models")
app.add_typer(images.app, name="images")
app.command("demo")(demo.run_demo)
app.command("eval")(evaluate.evaluate_models)
app.command("plan")(plan.plan_job)
