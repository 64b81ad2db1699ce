"""Files that are there whole or not at all, whoever is killed meanwhile and whatever disk is full."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A hidden path beside `target` to write to: it takes the target's place in the end, and is gone if that fails.

    For one writer at a time.
    """
    partial = target.with_name(f".{target.name}.partial")
    try:
        yield partial
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
