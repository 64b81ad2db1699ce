"""Small file systems that can be filled for real, where this machine lets us mount them."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path


class Disk:
    """A folder. With `is_own` it is a file system of its own, and `full()` leaves no byte of it."""

    def __init__(self, folder: Path, why_not: str | None) -> None:
        self.folder, self.why_not = folder, why_not

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        ballast = self.folder / ".ballast"
        try:
            with ballast.open("wb", buffering=0) as file:
                for size in (2**20, 2**12, 1):  # to the last byte
                    with contextlib.suppress(OSError):
                        while True:
                            file.write(bytes(size))
            yield
        finally:
            ballast.unlink(missing_ok=True)


@contextlib.contextmanager
def small_disk(folder: Path, mib: int) -> Iterator[Disk]:
    """A tmpfs of so many MiB at `folder`; where mounting is refused a plain folder that says why."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0:
        yield Disk(folder, "mounting a small file system needs root")
        return
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=0755", "dipole-chaos", str(folder)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        yield Disk(folder, f"mount: {done.stderr.strip()}")
        return
    try:
        yield Disk(folder, None)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)
