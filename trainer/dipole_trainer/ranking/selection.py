"""From scores to an order: combine rewards, then pick what attracts and what repels.

A reward is used for ordering only. Everything that can go wrong with an order is decided here (METHOD: what ordering
can go wrong): a candidate without a score leaves the group, a group without spread is skipped, and neither rounding nor
a tie across a cut decides. A gate goes before the sum: no candidate that fails one attracts.

Legend: K candidates, P positives, N negatives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dipole_trainer.ranking.groups import RankedGroup
from dipole_trainer.spec import RewardSpec

ScoreList = Sequence[float | None]
Normalize = Literal["zscore", "rank", "none"]
SkipCode = Literal[
    "too_few_scores", "no_spread", "reward_failed", "no_ranking", "no_scores_to_gate", "none_passes"
]  # fmt: skip
TIE_TOLERANCE = 1e-9  # scores closer than this, relative to the largest, are equal: rounding is no preference


@dataclass(frozen=True)
class WeightedScores:
    """One reward's scores of a group, and how they enter the sum."""

    scores: ScoreList
    weight: float
    normalize: Normalize = "zscore"


@dataclass(frozen=True)
class Selection:
    """Row numbers of the best and the worst candidates, best (worst) first; the two never overlap."""

    positives: tuple[int, ...]
    negatives: tuple[int, ...]


@dataclass(frozen=True)
class SkippedGroup:
    """Why a group cannot be trained on: `code` is for counting, `reason` for reading."""

    code: SkipCode
    reason: str


def combine_scores(rewards: Mapping[str, WeightedScores]) -> NDArray[np.float64]:
    """The weighted sum of normalised scores, (K,); NaN marks a candidate that any trained reward left without a score.

    Held-out rewards (weight 0) take no part, not even by their missing scores.
    """
    trained = [reward for reward in rewards.values() if reward.weight != 0]
    if not trained:
        return np.empty(0)
    raw = np.array([[_nan_if_missing(score) for score in reward.scores] for reward in trained])  # (rewards, K)
    valid = np.isfinite(raw).all(0)
    total = np.full(raw.shape[1], np.nan)
    total[valid] = 0.0
    for reward, scores in zip(trained, raw, strict=True):
        total[valid] += reward.weight * normalize_scores(scores[valid], reward.normalize)
    return total


def normalize_scores(scores: NDArray[np.float64], how: Normalize) -> NDArray[np.float64]:
    """Scores of one group and reward: z-scored, as ranks in -1..1 with ties sharing theirs, or as they are."""
    if how == "none" or not scores.size:
        return scores
    largest = np.abs(scores).max()
    same = TIE_TOLERANCE * largest
    if how == "rank":
        gap = scores[:, None] - scores[None]
        return np.asarray(((gap > same).sum(1) - (gap < -same).sum(1)) / max(scores.size - 1, 1), np.float64)
    if np.ptp(scores) <= same:
        return np.zeros_like(scores)
    scaled = scores / largest  # the square of a very large or small score is no number
    return np.asarray((scaled - scaled.mean()) / scaled.std(), np.float64)


def apply_gates(
    total: NDArray[np.float64], gates: Sequence[tuple[ScoreList, float]]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The scores (K,) with candidates that fail a gate, (its scores, the least that passes), below those that pass all;
    and who passes, (K,). A candidate without a gate's score leaves the group: nobody knows whether it passes.
    """
    passes = known = np.isfinite(total)
    for scores, least in gates:
        values = np.array([_nan_if_missing(score) for score in scores])
        known = known & np.isfinite(values)
        passes = passes & (values >= least)
    gated = np.where(known, total, np.nan)
    if known.any():
        gated[known & ~passes] -= np.ptp(total[known]) + 1.0
    return gated, known & passes


def select_share(total: NDArray[np.float64], share: float) -> tuple[int, ...] | None:
    """Rows of so large a share of the scored candidates, the best, in the order of rows; None where it is all of them
    and those without a score. Of equal ones the first.
    """
    if share == 1:
        return None
    rows = np.flatnonzero(np.isfinite(total))
    best = rows[np.argsort(-total[rows], kind="stable")][: math.ceil(share * rows.size)]
    return tuple(sorted(best.tolist()))


def select_extremes(total: NDArray[np.float64], positives: int, negatives: int) -> Selection | SkippedGroup:
    """The best `positives` and worst `negatives` of `total` (K,), NaN left out.

    With fewer valid candidates than P + N both shrink, down to one each. A tie across a cut shrinks that side to the
    candidates clearly beyond it; where the whole side is one tie, its first rows stand for it.
    """
    rows = np.flatnonzero(np.isfinite(total))
    if rows.size < 2:
        return SkippedGroup(
            "too_few_scores", f"{rows.size} of {total.size} candidates have a score; at least 2 are needed"
        )
    spread = float(np.ptp(total[rows]))
    if spread <= TIE_TOLERANCE * max(1.0, float(np.abs(total[rows]).max())):
        return SkippedGroup("no_spread", "no spread: all candidates have the same score")
    if rows.size < positives + negatives:
        share = positives / (positives + negatives)
        positives = min(max(round(share * rows.size), 1), rows.size - 1, positives)
        negatives = min(rows.size - positives, negatives)
    tolerance = TIE_TOLERANCE * spread
    descending = rows[np.argsort(-total[rows], kind="stable")]
    ascending = rows[np.argsort(total[rows], kind="stable")]
    best = _rows_before_tie(descending, -total, positives, tolerance)
    worst = _rows_before_tie(ascending, total, negatives, tolerance)
    return Selection(positives=tuple(best), negatives=tuple(worst))


def select_shown(scores: ScoreList, best: int, worst: int) -> frozenset[int]:
    """The rows of the `best` best and the `worst` worst of one reward's scores, without those that have none."""
    scored = [(-score, row) for row, score in enumerate(scores) if score is not None]
    order = [row for _, row in sorted(scored)]
    return frozenset(order[:best] + order[max(len(order) - worst, 0) :])


def shuffle_scores(total: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """The control: the same scores, handed to other candidates at random. NaN stay where they are."""
    mixed, valid = total.copy(), np.isfinite(total)
    mixed[valid] = rng.permutation(total[valid])
    return mixed


def _rows_before_tie(ordered: NDArray[np.intp], key: NDArray[np.float64], count: int, tolerance: float) -> list[int]:
    """The first `count` rows of `ordered`, without those whose equals fall behind the cut."""
    chosen, rest = ordered[:count], ordered[count:]
    if rest.size and abs(key[chosen[-1]] - key[rest[0]]) <= tolerance:
        clear = [int(row) for row in chosen if key[rest[0]] - key[row] > tolerance]
        return clear or [int(row) for row in chosen]
    return [int(row) for row in chosen]


def _nan_if_missing(score: float | None) -> float:
    return float(score) if score is not None and math.isfinite(score) else math.nan


@dataclass(frozen=True)
class GroupOrder:
    """Combined scores (R,), higher is better, NaN for a candidate without; the rows of best and worst; and how many
    candidates failed a gate.
    """

    total: NDArray[np.float64]
    selection: Selection
    gated: int = 0


def order_group(
    ranked: RankedGroup,
    rewards: Sequence[RewardSpec],
    *,
    positives: int,
    negatives: int,
    shuffle: np.random.Generator | None = None,
) -> GroupOrder | SkippedGroup:
    """Combine the rewards' answers and choose. `shuffle` hands the scores to other candidates: the control.

    A group without a required reward's scores, or without any trained reward's, is skipped: no score is made up; so is
    one of which nobody passes the gates.
    """
    weighted = {}
    gates: dict[str, tuple[ScoreList, float]] = {}
    for reward in rewards:
        result = ranked.results[reward.name]
        if result.failure is None:
            how = "rank" if result.ordinal else reward.normalize
            weighted[reward.name] = WeightedScores(result.scores, reward.weight, how)
            if reward.at_least is not None:
                if result.ordinal:
                    return SkippedGroup(
                        "no_scores_to_gate", f"{reward.name} gave an order and no scores, which a gate (at_least) needs"
                    )
                gates[f"{reward.name} ≥ {reward.at_least:g}"] = (result.scores, reward.at_least)
        elif reward.required and not reward.is_held_out:
            return SkippedGroup("reward_failed", f"required reward {reward.name}: {result.failure}")
    if not any(reward.weight != 0 for reward in weighted.values()):
        return SkippedGroup("no_ranking", "no trained reward gave a ranking")
    total, passes = apply_gates(combine_scores(weighted), list(gates.values()))
    if gates and not passes.any():
        return SkippedGroup("none_passes", f"no candidate passes {' and '.join(gates)}")
    if shuffle is not None:
        total = shuffle_scores(total, shuffle)
    gated = int(np.isfinite(total).sum() - passes.sum())
    if gated:  # those who pass have the highest scores, and where scores are shuffled, as many have
        positives = min(positives, int(passes.sum()))
    chosen = select_extremes(total, positives, negatives)
    return chosen if isinstance(chosen, SkippedGroup) else GroupOrder(total, chosen, gated)
