"""A file that can be fetched: its address, size and checksum, before a byte of it is here; and who offers such."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from dipole.downloads.table import PackageText, SourceFiles

PIECE_BYTES = 2**20


@dataclass(frozen=True)
class Checksum:
    """SHA-256 of the bytes, or for small files of the hub Git's: SHA-1 of a header with the size, and the bytes."""

    algorithm: Literal["sha256", "git"]
    digest: str

    def start(self, size: int | None) -> Any:
        """A hash object that is to be fed the bytes."""
        if self.algorithm == "sha256":
            return hashlib.sha256()
        return hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)

    def matches(self, path: Path) -> bool:
        hasher = self.start(path.stat().st_size)
        with path.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                hasher.update(piece)
        return bool(hasher.hexdigest() == self.digest)


@dataclass(frozen=True)
class RemoteFile:
    name: str  # in the target folder
    url: str
    size: int | None
    checksum: Checksum | None
    commit: str = ""
    headers: dict[str, str] = field(default_factory=dict, repr=False)  # may hold the user's token
    local: Path | None = None  # the same file on this machine, which is copied


class FileOrigin(Protocol):
    """Where files are brought from: the sources that published them, or a folder."""

    def list_files(self, part: SourceFiles) -> list[RemoteFile]:
        """The files of one part. Raises DownloadError that says what to do."""

    def find_text(self, text: PackageText) -> RemoteFile:
        """The text as a file, named `text.into`, or the wheel that holds it, named `text.wheel`."""
