"""A batch in pieces: what is worked on at once takes a piece's memory, however many samples there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")


class MicroBatches:
    """Pieces of at most `size` samples. Out of memory halves the size, for good, and the piece is tried again."""

    def __init__(self, size: int, on_halved: Callable[[int], None] = lambda size: None) -> None:
        self.size, self._on_halved = size, on_halved

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
                if not is_out_of_memory(error) or len(piece) == 1:
                    raise
            self._halve_size(len(piece))  # not in the except block: its traceback holds the piece's tensors
        return results

    def _halve_size(self, tried: int) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.size = tried // 2
        self._on_halved(self.size)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Also as CUDA's libraries say it, nearest to the limit: CUDNN_STATUS_ALLOC_FAILED and the like."""
    return isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error)
