"""The embedded stack for as long as a command needs it, shown as it comes up: `dipole up`, `dipole demo`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from dipole.cli.optional_imports import explain_missing
from dipole.cli.terminal import printable
from dipole.client.trainer_api import DEFAULT_URL

if TYPE_CHECKING:
    from dipole.stack.stack import LocalRaters, LocalReward, Stack


@contextmanager
def running_stack(
    console: Console,
    home: Path | None,
    rewards: Sequence[LocalReward | LocalRaters],
    *,
    sampler: bool = False,
    on_restart: Callable[[str, int], None] | None = None,
) -> Iterator[Stack]:
    """Every process ready and listed on the console; none is left afterwards. Raises what Stack does."""
    with explain_missing("embedded"):
        from dipole.stack.stack import Stack
    with (
        console.status("Starting the platform …") as status,
        Stack(home, rewards, sampler=sampler, on_restart=on_restart) as stack,
    ):
        status.stop()
        console.print(_processes_table(stack))
        for sentence in stack.moved_ports:
            console.print(f"[yellow]{printable(sentence)}[/]")
        if stack.api_url != DEFAULT_URL:
            console.print(f"Commands find it with --api {stack.api_url}, or: export DIPOLE_API_URL={stack.api_url}")
        yield stack


def _processes_table(stack: Stack) -> Table:
    """Name, address, process and log of everything in a stack."""
    table = Table(title=f"Dipole in {stack.home}", title_justify="left")
    for heading in ("name", "url", "pid", "log"):
        table.add_column(heading, overflow="fold")
    for row in stack.process_rows():
        log = str(row.log.relative_to(stack.home)) if row.log else ""
        table.add_row(row.name, row.url, str(row.pid or "not ours"), log)
    return table
