"""A circuit breaker: after some failures in a row an endpoint is left alone for a while, then tried with one request.

    closed ──failures in a row──▶ open ──cool-off passed──▶ half-open ──success──▶ closed
                                   ▲                            └──failure──┐
                                   └────────────────────────────────────────┘
One breaker per endpoint, shared by every thread that uses it. The kept libraries for this bring their own storage and
listeners; what is needed here is one lock and three numbers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Literal

State = Literal["closed", "open", "half-open"]


class CircuitBreaker:
    def __init__(
        self, *, failures: int = 5, cool_off_s: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.failures, self.cool_off_s, self._clock = failures, cool_off_s, clock
        self._lock = threading.Lock()
        self._in_a_row = 0
        self._opened_at: float | None = None
        self._probe_since: float | None = None

    @property
    def state(self) -> State:
        with self._lock:
            if self._opened_at is None:
                return "closed"
            return "open" if self._clock() < self._opened_at + self.cool_off_s else "half-open"

    def wait_s(self) -> float:
        """0 when a request may go now, else seconds until asking again is worth it.

        Whoever got 0 reports with `succeeded`, `failed` or `released`; from a half-open circuit only one gets it.
        """
        with self._lock:
            if self._opened_at is None:
                return 0.0
            now = self._clock()
            if now < self._opened_at + self.cool_off_s:
                return self._opened_at + self.cool_off_s - now
            if self._probe_since is not None and now < self._probe_since + self.cool_off_s:
                return min(1.0, self.cool_off_s)
            self._probe_since = now
            return 0.0

    def succeeded(self) -> None:
        with self._lock:
            self._in_a_row, self._opened_at, self._probe_since = 0, None, None

    def failed(self) -> None:
        with self._lock:
            self._in_a_row += 1
            if self._opened_at is not None or self._in_a_row >= self.failures:
                self._opened_at, self._probe_since = self._clock(), None

    def released(self) -> None:
        """The request said nothing about the endpoint's health (it was our fault, or it asked us to wait)."""
        with self._lock:
            self._probe_since = None
