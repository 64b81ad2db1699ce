"""A sum whose last bit does not depend on which of its terms came first."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from torch import Tensor


class OrderedSum:
    """Adds up gradients in the order of their index as they come, holding back only those that came early."""

    def __init__(self, indices: Iterable[int]) -> None:
        self.total: list[Tensor] | None = None
        self._early: dict[int, list[Tensor] | None] = {}
        self._waiting = deque(sorted(indices))

    def add(self, index: int, gradient: list[Tensor] | None) -> None:
        self._early[index] = gradient
        while self._waiting and self._waiting[0] in self._early:
            value = self._early.pop(self._waiting.popleft())
            if value is not None:
                self.total = value if self.total is None else [a + b for a, b in zip(self.total, value, strict=True)]
