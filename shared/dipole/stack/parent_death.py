"""Dies with its parent: no process of ours outlives whoever started it, however that one ended.

    python parent_death.py PARENT_PID COMMAND...      becomes COMMAND, which is killed when PARENT_PID ends, also by
    kill -9

On Linux the kernel sees to it (PR_SET_PDEATHSIG, which survives exec). Elsewhere, as best it can, this process stays,
looks every second whether its parent is still the same, and then ends COMMAND's process group. Imports nothing of ours,
so that it starts in milliseconds (`python -S -E`).
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent, process `parent`, ends. Does nothing but on Linux."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # it ended before we asked
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _watch_parent(parent: int, command: list[str]) -> int:
    """The best effort elsewhere."""
    child = subprocess.Popen(command)  # noqa: S603 (our own command)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    while True:
        try:
            return child.wait(1)
        except subprocess.TimeoutExpired:
            if os.getppid() != parent:
                os.killpg(os.getpgid(0), signal.SIGKILL)


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform != "linux":
        sys.exit(_watch_parent(parent, command))
    die_with_parent(parent)
    os.execv(command[0], command)  # noqa: S606 (our own command, no shell wanted)


if __name__ == "__main__":
    main()
