"""Where a reward's weights are: on its device while it ranks, and asleep in the host's memory while it lends that.

    forward ── held awake ──▶ asleep: moved back first            sleep ──▶ waits for the forwards that run, then moves

A forward never meets weights that are on their way, and none is refused because they are asleep. What stays on a GPU is
its context, some hundred MB, and what a reward computed from its weights (embeddings of names, say).
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import structlog

from dipole.errors import Overloaded
from dipole.protocol.schemas import WeightsState
from dipole_rewards.reward import MovableNetwork

log = structlog.get_logger()

HOST = "cpu"
RETRY_AFTER_S = 5.0  # where the device has no room for them now


class WeightResidence:
    """Moves `networks` between `device` and the host. Thread-safe. Without networks nothing ever moves."""

    def __init__(self, networks: Sequence[MovableNetwork], device: str, *, timeout_s: float) -> None:
        self._networks, self._device, self._timeout_s = networks, device, timeout_s
        self._changed = threading.Condition()  # guards the two below, and is held while weights move
        self._forwards = 0
        self._is_asleep = False

    @property
    def is_asleep(self) -> bool:
        return self._is_asleep

    @contextmanager
    def hold_awake(self) -> Iterator[None]:
        """Weights are on the device inside. Raises Overloaded when it has no room for them."""
        with self._changed:
            self._wake()
            self._forwards += 1
        try:
            yield
        finally:
            with self._changed:
                self._forwards -= 1
                self._changed.notify_all()

    def sleep(self) -> WeightsState:
        """Move the weights to the host once no forward runs. Raises Overloaded when one always does."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._forwards, self._timeout_s):
                raise Overloaded(f"the reward has been at work for {self._timeout_s:g} s", retry_after=RETRY_AFTER_S)
            if self._is_asleep:
                return WeightsState(status="asleep")
            state = self._move(HOST, "asleep")
            self._is_asleep = True
            return state

    def wake(self) -> WeightsState:
        """Move the weights to their device. Raises Overloaded when it has no room for them."""
        with self._changed:
            return self._wake()

    def _wake(self) -> WeightsState:
        if not self._is_asleep:
            return WeightsState(status="awake")
        try:
            state = self._move(self._device, "awake")
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":  # torch's, which rewards without weights do not import
                raise
            message = f"{self._device} has no room for the reward's weights now: {str(error).partition('.')[0]}"
        else:
            self._is_asleep = False
            return state
        # not in the except block: its traceback holds what was moved
        self._move(HOST, "asleep")
        raise Overloaded(message, retry_after=RETRY_AFTER_S)

    def _move(self, device: str, status: Any) -> WeightsState:
        began = time.monotonic()
        for network in self._networks:
            network.to(device)
        torch: Any = sys.modules.get("torch")
        if device == HOST and torch is not None and torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # for other processes; ours would keep it
        moved = sum(tensor.nbytes for network in self._networks for tensor in network.state_dict().values())
        seconds = time.monotonic() - began
        log.info("weights_moved", status=status, device=device, moved_bytes=moved, seconds=round(seconds, 3))
        return WeightsState(status=status, moved_bytes=moved, seconds=round(seconds, 3))
