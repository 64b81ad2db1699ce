"""Every help text is shown as it is written, and every list has a form for programs."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator

import click
import pytest
import typer
from typer.testing import CliRunner

from dipole.cli import app


def commands(group: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_no_word_of_a_help_text_is_lost(path: tuple[str, ...]) -> None:
    """Brackets are no markup: `[default: …]` reaches the reader; so does every default."""
    done = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "400", "NO_COLOR": "1", "TERMINAL_WIDTH": "400"})
    assert done.exit_code == 0
    shown = done.stdout.split()
    for parameter in COMMANDS[path].params:
        assert set((getattr(parameter, "help", None) or "").split()) <= set(shown), parameter.name
        default = getattr(parameter, "show_default", None)
        assert not isinstance(default, str) or default in done.stdout, parameter.name
    assert set((COMMANDS[path].help or "").split()) - {"\f"} <= set(shown)


def test_every_list_has_a_form_for_programs() -> None:
    """`--json` is an option of all of them."""
    lists = {
        path: command
        for path, command in COMMANDS.items()
        if path[-1:] in (("list",), ("checkpoints",), ("events",), ("status",))
    }
    assert len(lists) == 8
    for path, command in lists.items():
        assert any("--json" in parameter.opts for parameter in command.params), path


def test_the_version_is_the_distributions() -> None:
    """`dipole --version` needs no command."""
    done = CliRunner().invoke(app, ["--version"])
    assert done.stdout == f"dipole {importlib.metadata.version('dipole')}\n"
