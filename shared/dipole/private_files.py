"""Files and folders for their owner alone: what the platform keeps holds prompts, pictures and keys."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def make_private_folder(path: Path) -> None:
    """Make a folder, and those above it, for its owner alone. One that is there stays as somebody made it."""
    if not path.is_dir():
        make_private_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)


def make_private_file(path: Path) -> None:
    """Make an empty file for its owner alone, or hide the one that is there."""
    make_private_folder(path.parent)
    path.touch(mode=0o600) if not path.exists() else hide_from_others(path)


def hide_from_others(path: Path) -> None:
    """Take everybody else's rights on a file of ours; one that is not there, or not ours, stays as it is."""
    with suppress(FileNotFoundError, PermissionError):
        path.chmod(0o600)
