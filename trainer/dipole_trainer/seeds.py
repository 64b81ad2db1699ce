"""Which prompt and which noises a step uses: functions of the job's seed, so that a resumed run draws the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

ItemT = TypeVar("ItemT")


def derive_seeds(*path: object, count: int) -> list[int]:
    """`count` seeds below 2^53 (exact in JSON) for a place such as (seed, step, position)."""
    return [_hash_to_integer("/".join(map(str, (*path, k)))) for k in range(count)]


def prompts_of_step(items: Sequence[ItemT], step: int, size: int, seed: int) -> list[ItemT]:
    """The `size` items of a step: epochs of shuffled items, one after the other."""
    chosen = []
    for position in range(step * size, (step + 1) * size):
        epoch, place = divmod(position, len(items))
        chosen.append(items[_epoch_order(len(items), epoch, seed)[place]])
    return chosen


@lru_cache(maxsize=4)  # windows drawn ahead may be in the next epoch; a million prompts take 8 MB
def _epoch_order(count: int, epoch: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(_hash_to_integer(f"{seed}/epoch/{epoch}")).permutation(count)


def _hash_to_integer(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 11
