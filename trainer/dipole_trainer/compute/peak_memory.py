"""Counts the bytes of tensors that are alive: storages once each, on any device, fake ones too."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, `alive_bytes` are those of new tensor storages, and `peak_bytes` the most of them at once.

    What was there before, such as weights, is not counted.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive_bytes = self.peak_bytes = 0
        self._seen: set[int] = set()

    def start_peak(self) -> None:
        """Forget the peak so far: it is now what is alive."""
        self.peak_bytes = self.alive_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for each in (args, kwargs or {}):
            tree_map_only(Tensor, self._skip, each)
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._count, result)
        return result

    def _skip(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._remember(storage, 0)
        return tensor

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._remember(storage, storage.nbytes())
        return tensor

    def _remember(self, storage: Any, size: int) -> None:
        self._seen.add(storage._cdata)
        self.alive_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.alive_bytes)
        weakref.finalize(storage, self._forget, storage._cdata, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.alive_bytes -= size
