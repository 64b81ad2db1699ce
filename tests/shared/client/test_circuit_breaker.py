"""The circuit breaker, on a clock of the test's own."""

from __future__ import annotations

from dipole.client.circuit_breaker import CircuitBreaker


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def broken(clock: Clock) -> CircuitBreaker:
    breaker = CircuitBreaker(failures=3, cool_off_s=10, clock=clock)
    for _ in range(3):
        assert breaker.reserve_request() == 0
        breaker.record_failure()
    return breaker


def test_it_opens_after_failures_in_a_row_only() -> None:
    """A success in between starts the count anew."""
    breaker = CircuitBreaker(failures=2, clock=Clock())
    for report in (breaker.record_failure, breaker.record_success, breaker.record_failure):
        report()
    assert str(breaker.state) == "closed"
    breaker.record_failure()
    assert str(breaker.state) == "open"


def test_an_open_circuit_tells_how_long() -> None:
    """The wait shrinks as the clock goes."""
    clock = Clock()
    breaker = broken(clock)
    clock.now = 4
    assert breaker.reserve_request() == 6


def test_one_probe_at_a_time() -> None:
    """After the cool-off one caller may try; the others wait; its success closes the circuit."""
    clock = Clock()
    breaker = broken(clock)
    clock.now = 10
    assert str(breaker.state) == "half-open"
    assert breaker.reserve_request() == 0
    assert breaker.reserve_request() > 0
    breaker.record_success()
    assert str(breaker.state) == "closed"
    assert breaker.reserve_request() == 0


def test_a_failed_probe_opens_it_again_and_a_released_one_lets_the_next_try() -> None:
    """One failure is enough while half-open; a probe that proved nothing gives its place away."""
    clock = Clock()
    breaker = broken(clock)
    clock.now = 10
    assert breaker.reserve_request() == 0
    breaker.record_neutral()
    assert breaker.reserve_request() == 0
    breaker.record_failure()
    assert str(breaker.state) == "open"
    assert breaker.reserve_request() == 10


def test_a_probe_that_never_reports_does_not_block_for_ever() -> None:
    """A thread killed in the middle of its probe is replaced after another cool-off."""
    clock = Clock()
    breaker = broken(clock)
    clock.now = 10
    assert breaker.reserve_request() == 0
    clock.now = 21
    assert breaker.reserve_request() == 0
