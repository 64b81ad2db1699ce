"""Which prompts a step uses."""

from __future__ import annotations

import time
from itertools import count

from dipole_trainer.seeds import prompts_of_step


def test_every_prompt_is_used_once_an_epoch() -> None:
    """Windows of 4 over 6 prompts: each epoch is a permutation, also across windows and in whatever order they come."""
    items = list("abcdef")
    windows = [prompts_of_step(items, step, 4, seed=3) for step in range(6)]
    used = [each for drawn in windows for each in drawn]
    epochs = [used[start : start + 6] for start in range(0, 24, 6)]
    assert [sorted(epoch) for epoch in epochs] == [items] * 4
    assert len(set(map(tuple, epochs))) > 1
    assert [prompts_of_step(items, step, 4, seed=3) for step in reversed(range(6))] == windows[::-1]
    assert windows[0] == ["a", "f", "e", "c"]  # as it was in every version: a job that is resumed goes on with its own


def test_a_window_costs_one_permutation() -> None:
    """A large one takes as long as a small one: an epoch of a million prompts is shuffled once, not for each."""
    items, seeds = range(200_000), count()

    def seconds(size: int) -> float:
        began = time.process_time()
        prompts_of_step(items, 0, size, next(seeds))
        return time.process_time() - began

    assert min(seconds(64) for _ in range(3)) < 8 * min(seconds(1) for _ in range(3))
