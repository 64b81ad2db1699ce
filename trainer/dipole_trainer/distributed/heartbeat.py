"""Ends this process when another that trains with it falls silent.

A process that dies closes its connections, and whoever waits for it learns that at once. A machine that loses power or
its network closes nothing: the others would wait as long as they wait for people. So each process counts up a number of
its own in the launcher's store, from a thread, and looks whether the others' numbers still move.
"""

from __future__ import annotations

import os
import threading
import time

import structlog
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # documented, and missing in torch's own list

log = structlog.get_logger()

HEARTBEAT_INTERVAL_S = 10.0
# a thread does not run while another holds the interpreter, as reading large files may do
SILENCE_TIMEOUT_S = 600.0


def connect_store() -> TCPStore:
    """A new connection to the store at which the launcher's processes have met. Raises RuntimeError."""
    return TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))


class HeartbeatThread(threading.Thread):
    """Beats from `start` to `stop`, on a connection of its own."""

    def __init__(self, rank: int, size: int, *, silence_s: float) -> None:
        super().__init__(name="pulse", daemon=True)
        self._rank, self._other_ranks = rank, [other for other in range(size) if other != rank]
        self._silence_s, self._interval_s = silence_s, min(HEARTBEAT_INTERVAL_S, silence_s / 4)
        self._stop_requested = threading.Event()

    def run(self) -> None:
        try:
            silent = self._find_silent_rank(connect_store())
        except RuntimeError as error:
            # the store, and the machine of rank 0 with it
            silent = None if self._stop_requested.is_set() else f"the launcher's store: {error}"
        if silent is not None:
            log.error("process_silent", who=silent)
            os._exit(1)  # as if killed: the launcher ends what runs here, the job's lease runs out

    def stop(self) -> None:
        """Before an orderly end, which ends the others' pulses too."""
        self._stop_requested.set()

    def _find_silent_rank(self, store: TCPStore) -> str | None:
        """Beat and listen, until somebody is silent; None when stopped."""
        heard = dict.fromkeys(self._other_ranks, (-1, time.monotonic()))  # count, and when it last changed
        while not self._stop_requested.wait(self._interval_s):
            store.add(_heartbeat_key(self._rank), 1)
            for other in self._other_ranks:
                count, now = store.add(_heartbeat_key(other), 0), time.monotonic()
                if count != heard[other][0]:
                    heard[other] = (count, now)
                elif now - heard[other][1] > self._silence_s:
                    return f"process {other}, for {self._silence_s:g} s"
        return None


def _heartbeat_key(rank: int) -> str:
    return f"dipole/pulse/{rank}"
