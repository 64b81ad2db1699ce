"""What commands share on both sides of the terminal: the options they read, and the lists and text they print."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table

from dipole.cli.optional_imports import explain_missing
from dipole.downloads.report import fetch_named
from dipole.downloads.table import Kind

UrlOption = Annotated[str, typer.Option("--api", envvar="DIPOLE_API_URL", help="URL of the trainer API.")]
KeyOption = Annotated[
    str | None, typer.Option("--key", envvar="DIPOLE_API_KEY", help="Key of the API.", show_default=False)
]
AdminKeyOption = Annotated[
    str | None, typer.Option("--key", envvar="DIPOLE_API_KEY", help="Admin key of the API.", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object a line, with all fields.")]
ToOption = Annotated[
    Path | None,
    typer.Option(help="The folder of this one, instead of its own in DIPOLE_MODELS_DIR or DIPOLE_WEIGHTS_DIR."),
]
FromOption = Annotated[
    Path | None,
    typer.Option("--from", exists=True, file_okay=False, help="A folder that has the files; no network is asked."),
]

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

MAX_CELL_CHARS = 60
STATUS_COLOURS = {"succeeded": "green", "running": "cyan", "failed": "red", "cancelled": "yellow", "paused": "yellow"}


def print_list(
    items: Iterable[dict[str, Any]], columns: Mapping[str, Callable[[dict[str, Any]], object]], *, as_json: bool
) -> None:
    """A table with a line for each item, or with `as_json` a JSON object for each.

    The first column says which item it is and is never cut; what stands in the others is, after MAX_CELL_CHARS. Where
    a terminal is too narrow for the table, each item is a paragraph; a program that reads it gets a line for each.
    """
    if as_json:
        for item in items:
            print(json.dumps(item, ensure_ascii=False))
        return
    rows = [
        [_format_cell(str(cell(item)), cut=index > 0) for index, cell in enumerate(columns.values())] for item in items
    ]
    table = Table(*columns, box=None)
    for row in rows:
        table.add_row(*row)
    width = Measurement.get(out, out.options.update(max_width=10_000), table).maximum
    if out.is_terminal and width > out.width:
        _print_paragraphs(rows, list(columns))
    else:
        Console(width=max(width, out.width), highlight=False).print(table)


def fetch_and_print(kind: Kind, names: Sequence[str], to: Path | None, given: Path | None, *, extra: str) -> None:
    """Fetch published weights and print their folders. `extra` is what the fetching needs installed."""
    with explain_missing(extra):
        folders = fetch_named(kind, names, to, given, err)
    for folder in folders:
        out.print(str(folder), markup=False)


def print_published_weights(
    published: Iterable[dict[str, Any]],
    *,
    as_json: bool,
    more: Mapping[str, Callable[[dict[str, Any]], object]] | None = None,
) -> None:
    """Which published weights are on this machine, and what brings the others; `more` are further columns."""
    columns: dict[str, Callable[[dict[str, Any]], object]] = {
        "published": lambda weights: weights["name"],
        "weights": lambda weights: weights["state"],
        "GB": lambda weights: weights["gigabytes"] or "",
        "folder, or what fetches it": lambda weights: weights["command"] or weights["folder"],
        **(more or {}),
    }
    print_list(published, columns, as_json=as_json)


def _print_paragraphs(rows: Iterable[list[str]], headings: list[str]) -> None:
    for first, *cells in rows:
        out.print(f"[bold]{first}[/]")
        named = [f"{heading}: {cell}" for heading, cell in zip(headings[1:], cells, strict=True) if cell]
        out.print(Padding("\n".join(named), (0, 0, 0, 2)), soft_wrap=False)


def _format_cell(text: str, *, cut: bool) -> str:
    line = " ".join(text.split())
    cell = printable(line[: MAX_CELL_CHARS - 1] + "…" if cut and len(line) > MAX_CELL_CHARS else line)
    return f"[{STATUS_COLOURS[line]}]{cell}[/]" if line in STATUS_COLOURS else cell


def styled_status(job: Mapping[str, Any]) -> str:
    """A job's status, and its reason where there is one."""
    reason = status_reason(job)
    colour = STATUS_COLOURS.get(job["status"], "default")
    return f"[{colour}]{job['status']}[/]" + (f": {printable(reason)}" if reason else "")


def status_reason(job: Mapping[str, Any]) -> str:
    """Why a job failed or waits; empty when it does neither."""
    reason = job["error"] or job["waiting_for"]
    return str(reason["message"]) if reason else ""


def printable(text: str) -> str:
    """Without rich's markup and without a terminal's control characters: others may have written it."""
    return escape("".join(char if char.isprintable() or char == "\n" else "�" for char in text))


def plain(text: str) -> str:
    """One line without control characters, for a log: others may have written it."""
    return "".join(char if char.isprintable() else " " for char in text).rstrip()


def format_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
