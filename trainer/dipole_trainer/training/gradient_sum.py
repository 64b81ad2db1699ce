"""A sum whose last bit does not depend on which of its terms came first."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

MakeGradient = Callable[[], list[Tensor] | None]


class OrderedGradientSum:
    """Adds up gradients in the order of their index as they come, holding back those that came early.

    A gradient is made when it comes; where it is as large as the model (`lazy`), when its turn has come.
    """

    def __init__(self, indices: Iterable[int], *, lazy: bool = False) -> None:
        self.total: list[Tensor] | None = None
        self._lazy = lazy
        self._held_back: dict[int, MakeGradient] = {}
        self._waiting = deque(sorted(indices))

    def add_gradient(self, index: int, make: MakeGradient) -> None:
        if not self._lazy:
            made = make()
            self._held_back[index] = lambda: made
        else:
            self._held_back[index] = make
        while self._waiting and self._waiting[0] in self._held_back:
            value = self._held_back.pop(self._waiting.popleft())()
            if value is None:
                continue
            if self.total is None:
                self.total = value
            else:
                torch._foreach_add_(self.total, value)
