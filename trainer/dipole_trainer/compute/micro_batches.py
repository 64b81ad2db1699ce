"""A batch in pieces: what is worked on at once takes a piece's memory, however many samples there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")


class MicroBatches:
    """Pieces of at most `size` samples. Out of memory halves the size, for good, and the piece is tried again.

    Before that `free_memory` is asked to give up what can be done without, and says whether it did.
    """

    def __init__(
        self,
        size: int,
        on_halved: Callable[[int], None] = lambda size: None,
        *,
        free_memory: Callable[[], bool] = lambda: False,
    ) -> None:
        self.size = size
        self._on_halved = on_halved
        self._free_memory = free_memory

    def map(self, rows: Sequence[int], call: Callable[[list[int]], T]) -> list[T]:
        """`call` of consecutive pieces of `rows`. Raises torch.OutOfMemoryError when one sample alone does not fit."""
        results: list[T] = []
        done = 0
        while done < len(rows):
            piece = list(rows[done : done + self.size])
            try:
                results.append(call(piece))
                done += len(piece)
                continue
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                has_freed = self._free_memory()
                if len(piece) == 1 and not has_freed:
                    raise
            # not in the except block: its traceback holds the piece's tensors
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if not has_freed:
                self.size = len(piece) // 2
                self._on_halved(self.size)
        return results


def is_out_of_memory(error: RuntimeError) -> bool:
    """Also as CUDA's libraries say it, nearest to the limit: CUDNN_STATUS_ALLOC_FAILED and the like."""
    return isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error)
