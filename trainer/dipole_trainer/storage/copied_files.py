"""Which of a store's files a backup copies: where an earlier copy has the file's size and time, that one is linked."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

SETTLED_NS = 2 * 10**9  # stores tell in seconds when a file changed


@dataclass(frozen=True)
class ListedFile:
    """A stored file as a listing has it."""

    path: str
    size: int
    changed_ns: int | None  # to the microsecond; None where the store does not say

    @classmethod
    def of(cls, path: str, info: dict[str, Any]) -> ListedFile:
        changed = info.get("mtime", info.get("LastModified"))
        changed = changed.timestamp() if isinstance(changed, datetime) else changed
        changed_ns = round(changed * 1e6) * 1000 if isinstance(changed, int | float) else None
        return cls(path, int(info["size"] or 0), changed_ns)

    def equals_copy(self, copy: Path) -> bool:
        with suppress(FileNotFoundError):
            found = copy.stat()
            return (found.st_size, found.st_mtime_ns) == (self.size, self.changed_ns)
        return False

    def stamp_copy(self, copy: Path) -> None:
        """Give a copy the file's time; but not that of a file so young that it may change once more and keep it."""
        if self.changed_ns is not None and time.time_ns() - self.changed_ns > SETTLED_NS:
            os.utime(copy, ns=(self.changed_ns, self.changed_ns))


def link_copy(existing: Path, path: Path) -> bool:
    """Make `path` the same file as an existing copy. False where the file system has no links between the two."""
    try:
        path.hardlink_to(existing)
    except OSError:
        return False
    return True
