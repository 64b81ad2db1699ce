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

CircuitState = Literal["closed", "open", "half-open"]


class CircuitBreaker:
    def __init__(
        self, *, failures: int = 5, cool_off_s: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.failures, self.cool_off_s, self._clock = failures, cool_off_s, clock
        self._lock = threading.Lock()
        self._consecutive_failures = 0
        self._opened_at: float | None = None
        self._probe_started_at: float | None = None

    @property
    def state(self) -> CircuitState:
        with self._lock:
            if self._opened_at is None:
                return "closed"
            return "open" if self._clock() < self._opened_at + self.cool_off_s else "half-open"

    def reserve_request(self) -> float:
        """0 when a request may go now and counts as begun, else seconds until asking again is worth it.

        Whoever got 0 reports with `record_success`, `record_failure` or `record_neutral`; from a half-open circuit only
        one gets it."""
        with self._lock:
            if self._opened_at is None:
                return 0.0
            now = self._clock()
            if now < self._opened_at + self.cool_off_s:
                return self._opened_at + self.cool_off_s - now
            if self._probe_started_at is not None and now < self._probe_started_at + self.cool_off_s:
                return min(1.0, self.cool_off_s)
            self._probe_started_at = now
            return 0.0

    def record_success(self) -> None:
        with self._lock:
            self._consecutive_failures, self._opened_at, self._probe_started_at = 0, None, None

    def record_failure(self) -> None:
        with self._lock:
            self._consecutive_failures += 1
            if self._opened_at is not None or self._consecutive_failures >= self.failures:
                self._opened_at, self._probe_started_at = self._clock(), None

    def record_neutral(self) -> None:
        """The request said nothing about the endpoint's health (it was our fault, or it asked us to wait)."""
        with self._lock:
            self._probe_started_at = None
