"""What the client's tests share."""

from __future__ import annotations

import time

import pytest

from .fake_clock import FakeClock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """This process's clock while the test runs. Threads that wait for locks or sockets keep the real one."""
    clock = FakeClock()
    monkeypatch.setattr(time, "monotonic", clock.monotonic)
    monkeypatch.setattr(time, "sleep", clock.sleep)
    return clock
