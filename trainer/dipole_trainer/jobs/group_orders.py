"""What became of a ranked group, told again from the ledger: the combined order, what attracted, what repelled.

The training loop keeps no orders, which follow from scores: the same function (ranking/selection.py) is asked again,
with the same seeds. One thing is not in the ledger: whether a reward's scores only order the group. A recording has it;
without one, the order is still known where a single reward is trained on, as every way to normalise keeps its order.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dipole_trainer.datasets.recordings import RecordedGroup
from dipole_trainer.ranking.groups import RankedGroup, RewardResult
from dipole_trainer.ranking.selection import SkippedGroup, order_group
from dipole_trainer.seeds import derive_seeds
from dipole_trainer.spec import MethodSpec, RewardSpec

NEEDS_RECORDING = "the combined order of several rewards is known of jobs with record_candidates alone"


@dataclass(frozen=True)
class ToldOrder:
    """`total`: combined scores in candidate order, None for a candidate without; rows of the best and the worst.

    `skipped` says why it was not trained on, `unknown` why nothing can be told; then the others are empty.
    """

    total: Sequence[float | None] = ()
    positives: Sequence[int] = ()
    negatives: Sequence[int] = ()
    skipped: str | None = None
    unknown: str | None = None


def tell_order(
    entry: Mapping[str, Any],
    rewards: Sequence[RewardSpec],
    method: MethodSpec,
    *,
    seed: int,
    candidates: int,
    recorded: RecordedGroup | None = None,
) -> ToldOrder:
    """The order of a group, an entry of the ledger as `list_groups` gives it, of a job with these settings."""
    deciding = [reward for reward in rewards if not reward.is_held_out]
    if missing := [reward.name for reward in deciding if reward.name not in entry["rewards"]]:
        return ToldOrder(unknown=f"{missing[0]} has not answered yet")
    if recorded is None and len(deciding) > 1:
        return ToldOrder(unknown=NEEDS_RECORDING)
    kept = set(recorded.seeds) if recorded is not None else set(entry["seeds"])
    left_out = [row for row, drawn in enumerate(entry["seeds"]) if drawn not in kept]
    results = {
        reward.name: _to_result(
            entry["rewards"].get(reward.name),
            left_out,
            is_ordinal=recorded is not None and recorded.results[reward.name].ordinal,
        )
        for reward in rewards
    }
    positives, negatives = method.settings.sides(candidates)
    shuffle = None
    if method.type == "random":
        index = int(str(entry["group"]).rpartition(".")[2])
        (shuffled,) = derive_seeds(seed, "shuffle", entry["step"], index, count=1)
        shuffle = np.random.default_rng(shuffled)
    ranked = RankedGroup(str(entry["group"]), results)
    found = order_group(ranked, rewards, positives=positives, negatives=negatives, shuffle=shuffle)
    if isinstance(found, SkippedGroup):
        return ToldOrder(skipped=found.reason)
    return ToldOrder(
        total=[float(each) if math.isfinite(each) else None for each in found.total],
        positives=found.selection.positives,
        negatives=found.selection.negatives,
    )


def _to_result(told: Mapping[str, Any] | None, left_out: Collection[int], *, is_ordinal: bool) -> RewardResult:
    if told is None:
        return RewardResult(scores=(), failure="it has not answered")
    scores = tuple(None if row in left_out else score for row, score in enumerate(told["scores"]))
    return RewardResult(scores=scores, failure=told["failure"], ordinal=is_ordinal)
