"""What the rewards said of a group, as an order: combined scores, the best and the worst. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dipole_trainer.ranking.groups import RankedGroup
from dipole_trainer.ranking.selection import Selection, Skip, Weighted, combine, select, shuffled
from dipole_trainer.spec import RewardSpec


@dataclass(frozen=True)
class Order:
    """Combined scores (R,), higher is better, NaN for a candidate without; and the rows of best and worst."""

    total: NDArray[np.float64]
    selection: Selection


def order(
    ranked: RankedGroup,
    rewards: Sequence[RewardSpec],
    *,
    positives: int,
    negatives: int,
    shuffle: np.random.Generator | None = None,
) -> Order | Skip:
    """Combine the rewards' answers and choose. `shuffle` hands the scores to other candidates: the control.

    A group without a required reward's scores, or without any trained reward's, is skipped: no score is made up.
    """
    weighted = {}
    for reward in rewards:
        result = ranked.results[reward.name]
        if result.failure is None:
            how = "rank" if result.ordinal else reward.normalize
            weighted[reward.name] = Weighted(result.scores, reward.weight, how)
        elif reward.required and reward.weight > 0:
            return Skip(f"required reward {reward.name}: {result.failure}")
    if not any(reward.weight > 0 for reward in weighted.values()):
        return Skip("no trained reward gave a ranking")
    total = combine(weighted)
    if shuffle is not None:
        total = shuffled(total, shuffle)
    chosen = select(total, positives, negatives)
    return chosen if isinstance(chosen, Skip) else Order(total, chosen)
