"""The `dipole` command: every process and every request of the platform, in one place.

Each module here holds one group of commands as a typer app; this one joins them and prints errors. What a command
needs is imported when it runs: the help comes at once, and an image without torch or Celery still has its commands.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from dipole.cli import demo, evaluate, files, images, jobs, plan, rewards, serve
from dipole.errors import DipoleError


class _ErrorPrintingGroup(TyperGroup):
    """Prints a DipoleError as one red sentence and exits with 1; anything else is a bug and shows its traceback."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        try:
            return super().main(args, *rest, **options)
        except DipoleError as error:
            Console(stderr=True).print(f"[bold red]Error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
            sys.exit(1)


app = typer.Typer(
    cls=_ErrorPrintingGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Dipole: rewards as a service for finetuning one-step image generators.",
)
app.command("up")(serve.run_stack)
app.add_typer(serve.app, name="serve")
app.add_typer(serve.db, name="db")
app.add_typer(rewards.app, name="rewards")
app.add_typer(jobs.app, name="jobs")
app.add_typer(files.files_app, name="files")
app.add_typer(images.app, name="images")
app.command("demo")(demo.run_demo)
app.command("eval")(evaluate.evaluate_models)
app.command("plan")(plan.plan_job)
