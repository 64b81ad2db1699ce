"""Which prompt and which noises a step uses: functions of the job's seed, so that a resumed run draws the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


def seeds_for(*path: object, count: int) -> list[int]:
    """`count` seeds below 2^53 (exact in JSON) for a place such as (seed, step, position)."""
    return [_integer("/".join(map(str, (*path, k)))) for k in range(count)]


def window(items: Sequence[Item], step: int, size: int, seed: int) -> list[Item]:
    """The `size` items of a step: epochs of shuffled items, one after the other."""
    chosen = []
    for position in range(step * size, (step + 1) * size):
        epoch, place = divmod(position, len(items))
        order = np.random.default_rng(_integer(f"{seed}/epoch/{epoch}")).permutation(len(items))
        chosen.append(items[order[place]])
    return chosen


def _integer(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 11
