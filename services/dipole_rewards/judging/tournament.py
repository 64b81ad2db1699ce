"""Which pairs are compared: all of them in a small group, about K·log2(K) in a large one.

A large group plays a Swiss tournament: in each round whoever has about as many points as another, and has not met it,
meets it, because a comparison of equals says most. Rounds are few and within one everything is asked at once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from random import Random

MAX_ROUND_ROBIN = 8

Pair = tuple[int, int]


class Tournament:
    """Of candidates 0…count−1. `random` breaks ties of points, and with them the first round."""

    def __init__(self, count: int, random: Random) -> None:
        self._count, self._random = count, random
        self._rounds_left = 1 if count <= MAX_ROUND_ROBIN else 2 * math.ceil(math.log2(count))
        self._compared: set[Pair] = set()
        self._byes = [0] * count

    def next_round(self, points: Sequence[float]) -> list[Pair]:
        """The pairs (i < j) to compare next, given the points so far; none when it is over."""
        if self._rounds_left == 0:
            return []
        self._rounds_left -= 1
        if self._count <= MAX_ROUND_ROBIN:
            return list(itertools.combinations(range(self._count), 2))
        return self._pair_neighbours(points)

    def _pair_neighbours(self, points: Sequence[float]) -> list[Pair]:
        waiting = sorted(range(self._count), key=lambda each: (-points[each], self._random.random()))
        if self._count % 2:
            out = min(reversed(waiting), key=self._byes.__getitem__)  # the lowest of those that sat out least
            waiting.remove(out)
            self._byes[out] += 1
        if self._rounds_left % 2:
            # pair from the bottom every other round: who is left over alternates between top and bottom
            waiting.reverse()
        pairs = []
        while waiting:
            first = waiting.pop(0)
            second = next((each for each in waiting if _ordered_pair(first, each) not in self._compared), None)
            if second is None:
                # it has met all that are left
                continue
            waiting.remove(second)
            pairs.append(_ordered_pair(first, second))
        self._compared.update(pairs)
        return pairs


def _ordered_pair(a: int, b: int) -> Pair:
    return (a, b) if a < b else (b, a)
