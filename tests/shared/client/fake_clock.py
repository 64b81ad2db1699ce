"""Time that passes only where somebody sleeps: what waits and retries is tested at once, however busy the machine."""

from __future__ import annotations


class FakeClock:
    """What `time.monotonic` says, in s, and `time.sleep` adds to."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.oversleeps_s = 0.0  # added to every pause, as a busy machine does

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds + self.oversleeps_s
