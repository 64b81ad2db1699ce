"""What the commands that fetch weights print: bars while bytes arrive, where all went, and what is here or missing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from dipole.downloads.fetch import FetchedWeights, fetch_weights, format_bytes
from dipole.downloads.local_folder import FolderOrigin
from dipole.downloads.remote_file import FileOrigin
from dipole.downloads.table import Kind, PublishedWeights, WeightsTable, fetch_command, read_table
from dipole.errors import InvalidInput
from dipole.settings import DownloadSettings, PlatformSettings, load_settings

LINE_S = 10.0  # between two lines on how far a file is, off a terminal


class _FileLines:
    """A line when a file begins, one every ten seconds on how far it is, and one when a file that took so long ends."""

    def __init__(self, console: Console, name: str, size: int | None) -> None:
        self._console, self._name, self._size = console, name, size
        self._began = time.monotonic()
        self._told = self._began
        console.print(escape(f"{name} ({format_bytes(size)})" if size is not None else name))

    def show(self, count: int) -> None:
        if time.monotonic() - self._told < LINE_S:
            return
        self._told = time.monotonic()
        took = self._told - self._began
        of = f" of {format_bytes(self._size)}" if self._size else ""
        left = f", about {took / count * (self._size - count):.0f} s left" if self._size and count else ""
        self._console.print(escape(f"{self._name}: {format_bytes(count)}{of} in {took:.0f} s{left}"))

    def end(self) -> None:
        if self._told > self._began:
            self._console.print(escape(f"{self._name}: all of it in {time.monotonic() - self._began:.0f} s"))


class FileBars:
    """A bar for each file, on a terminal; elsewhere lines."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def show_file(self, name: str, size: int | None) -> Iterator[Callable[[int], None]]:
        if not self._console.is_terminal:
            lines = _FileLines(self._console, name, size)
            yield lines.show
            lines.end()
            return
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, TimeRemainingColumn(), console=self._console) as bars:
            bar = bars.add_task(escape(name), total=size)
            yield lambda count: bars.update(bar, completed=count)


def fetch_named(kind: Kind, names: Sequence[str], to: Path | None, given: Path | None, console: Console) -> list[Path]:
    """Fetch each into its folder, and say on `console` what was done. Raises InvalidInput, DownloadError."""
    if to is not None and len(names) > 1:
        raise InvalidInput("--to is the folder of one: fetch the others with commands of their own", field="to")
    table = _read_table()
    chosen = [(name, table.find(kind, name)) for name in names]
    folders = []
    for name, weights in chosen:
        folder = (to or default_folder(kind, name, weights)).absolute()
        origin = FolderOrigin(table, given, folder.name) if given is not None else _published_origin(table)
        done = fetch_weights(weights, folder, origin=origin, progress=FileBars(console))
        for sentence in describe_fetched(name, weights, done, table):
            console.print(escape(sentence))
        folders.append(folder)
    return folders


def describe_fetched(name: str, weights: PublishedWeights, done: FetchedWeights, table: WeightsTable) -> Iterator[str]:
    new = f"{len(done.fetched)} files fetched ({format_bytes(done.bytes)})" if done.fetched else "nothing to fetch"
    yield f"{name} is in {done.folder}: {new}, {len(done.kept)} were there."
    for source, commit in done.commits.items():
        known = table.sources[source]
        pinned = "" if known.revision else ", the newest: no revision is known here"
        yield f"  {source} at {commit}{pinned}. Licence: {known.licence or 'see its page'}."
    if done.unchecked:
        yield f"  Not compared with any published checksum: {', '.join(done.unchecked)}."


def default_folder(kind: Kind, name: str, weights: PublishedWeights) -> Path:
    """In DIPOLE_MODELS_DIR or DIPOLE_WEIGHTS_DIR."""
    if kind == "models":
        return load_settings(PlatformSettings).models_dir / (weights.folder or name)
    return load_settings(DownloadSettings).weights_dir / (weights.folder or name)


def published_weights(kind: Kind) -> Iterator[dict[str, Any]]:
    """Of each entry of the table: where it belongs on this machine, what is missing of it, and what brings it."""
    for name, weights in _read_table().entries(kind).items():
        folder = default_folder(kind, name, weights).absolute()
        missing = weights.missing_files(folder)
        state = "here" if not missing else "missing" if len(missing) == len(weights.target_names()) else "incomplete"
        yield {
            "object": "weights",
            "name": name,
            "folder": str(folder),
            "state": state,
            "missing": missing,
            "gigabytes": weights.gigabytes,
            "command": fetch_command(kind, name) if missing else None,
        }


def _read_table() -> WeightsTable:
    chosen = load_settings(DownloadSettings).weights_table
    return read_table(chosen) if chosen else read_table()


def _published_origin(table: WeightsTable) -> FileOrigin:
    from huggingface_hub import HfApi

    from dipole.downloads.hub import PublishedOrigin

    return PublishedOrigin(table, HfApi(library_name="dipole"))
