"""A sum whose last bit does not depend on which of its terms came first."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Make = Callable[[], list[Tensor] | None]


class OrderedSum:
    """Adds up gradients in the order of their index as they come, holding back those that came early.

    A gradient is made when it comes; where it is as large as the model (`lazy`), when its turn has come.
    """

    def __init__(self, indices: Iterable[int], *, lazy: bool = False) -> None:
        self.total: list[Tensor] | None = None
        self._lazy = lazy
        self._early: dict[int, Make] = {}
        self._waiting = deque(sorted(indices))

    def add(self, index: int, make: Make) -> None:
        if not self._lazy:
            made = make()
            self._early[index] = lambda: made
        else:
            self._early[index] = make
        while self._waiting and self._waiting[0] in self._early:
            value = self._early.pop(self._waiting.popleft())()
            if value is None:
                continue
            if self.total is None:
                self.total = value
            else:
                torch._foreach_add_(self.total, value)
