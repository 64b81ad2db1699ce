"""The `dipole` command: every process and every request of the platform, in one place.

Each module here holds one group of commands as a typer app; this one joins them and prints errors. What a command
needs is imported when it runs: the help comes at once, and an image without torch or Celery still has its commands.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from dipole.cli import serve
from dipole.errors import DipoleError


class _Group(TyperGroup):
    """Prints a DipoleError as one red sentence and exits with 1; anything else is a bug and shows its traceback."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        try:
            return super().main(args, *rest, **options)
        except DipoleError as error:
            Console(stderr=True).print(f"[bold red]Error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
            sys.exit(1)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Dipole: rewards as a service for finetuning one-step image generators.",
)
app.command("up")(serve.up)
app.add_typer(serve.app, name="serve")
app.add_typer(serve.db, name="db")
for _name, _module, _attribute in (
    ("rewards", "rewards", "app"),
    ("jobs", "jobs", "app"),
    ("files", "jobs", "files_app"),
    ("demo", "demo", "app"),
):
    try:  # until every module is written; then plain imports
        app.add_typer(getattr(importlib.import_module(f"dipole.cli.{_module}"), _attribute), name=_name)
    except (ModuleNotFoundError, AttributeError):
        continue
