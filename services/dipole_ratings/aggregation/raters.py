"""How much each rater counts: a weight of 0.25…1 out of gold answers, repeats, dwell time and agreement with others.

Each of the four is a factor of 0…1, and a weight is 0.25 + 0.75 times their product. A factor starts at 1 and leaves it
as evidence comes: what was seen is averaged with imagined observations that say nothing against the rater, so that one
disagreement, one failed gold task or one quick answer costs little, and many of them cost most of the weight.

    gold        share of right answers
    repeats     share of repeated tasks that got the same answer again, over the pool's share
    dwell       share of answers that took long enough to look at the images
    agreement   mean τ-b with the others' order (leave-one-out), over the pool's mean

Repeats and agreement are measured against the pool, because taste and hard pictures make honest raters differ too:
whoever is as consistent as others loses nothing, and a pool at odds with itself does not accuse anybody.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dipole_ratings.aggregation.agreement import correlate_orders, measure_pool_agreement
from dipole_ratings.aggregation.answers import Answer, Matrix, count_wins

MIN_WEIGHT = 0.25
MIN_SECONDS_PER_IMAGE = 0.5  # of all images shown: nobody looks at four of them in under two seconds
PRIOR_CHECKS = 2.0  # imagined observations of gold and of repeats, which are few
PRIOR_ANSWERS = 5.0  # imagined observations of dwell and of agreement, one an answer
MIN_POOL_TAU = 0.1  # below it the pool has no common order that anybody could miss
MIN_POOL_REPEATS = 0.1
ROUNDS = 3  # in each the others' order is that of the last round's weights
LOW_WEIGHT = 0.5


@dataclass(frozen=True)
class RaterChecks:
    """What the queue saw of one rater beside the answers to tasks."""

    gold_right: int = 0
    gold_seen: int = 0
    repeats_agreed: int = 0
    repeats_seen: int = 0
    dwell: tuple[tuple[int, float], ...] = ()
    """(images shown, seconds until submitted) of each answer."""

    @property
    def hasty_answers(self) -> int:
        return sum(seconds < MIN_SECONDS_PER_IMAGE * images for images, seconds in self.dwell)


@dataclass(frozen=True)
class RaterQuality:
    """`weight` 0.25…1 and what it comes from, as shares; None where nothing was seen yet.

    `tau` is the mean τ-b with the others' order over the `compared` of all `answers`.
    """

    weight: float
    answers: int
    compared: int
    tau: float | None
    gold_right: float | None
    repeats_agreed: float | None
    hasty: float | None


@dataclass(frozen=True)
class PoolQuality:
    """`alpha` is Krippendorff's for ordinal data, None without two raters on one image; `statement` says it all."""

    raters: int
    answers: int
    alpha: float | None
    low_weight: tuple[str, ...]
    statement: str


@dataclass
class _Agreement:
    """Of one rater with the others' order: Σ τ-b over the answers for which there is one."""

    total: float = 0.0
    count: int = 0


def rate_raters(
    tasks: Sequence[Sequence[Answer]], checks: Mapping[str, RaterChecks] | None = None
) -> dict[str, RaterQuality]:
    """The quality of every rater who stands in `tasks`, each the answers to one task, or in `checks`.

    A tenth of a second for 200 tasks: rate a window of recent ones now and then, and keep what comes out.
    """
    checks = checks or {}
    answers = {answer.rater: 0 for task in tasks for answer in task} | dict.fromkeys(checks, 0)
    for task in tasks:
        for answer in task:
            answers[answer.rater] += 1
    checked = {rater: checks.get(rater, RaterChecks()) for rater in sorted(answers)}
    factor = _multiply_check_factors(checked)
    weights = {rater: _to_weight(factor[rater]) for rater in checked}
    rated_tasks = [_RatedTask.of(task) for task in tasks if len({answer.rater for answer in task}) > 1]
    agreement: Mapping[str, _Agreement] = {rater: _Agreement() for rater in checked}
    for _ in range(ROUNDS if rated_tasks else 0):
        agreement = _measure_left_out(rated_tasks, weights)
        pool = _average([(agreement[rater].total, agreement[rater].count, weights[rater]) for rater in checked])
        weights = {
            rater: _to_weight(
                factor[rater] * _compare_with_pool(found.total, found.count, pool, PRIOR_ANSWERS, MIN_POOL_TAU)
            )
            for rater, found in ((rater, agreement[rater]) for rater in checked)
        }
    return {
        rater: RaterQuality(
            weight=weights[rater],
            answers=answers[rater],
            compared=agreement[rater].count,
            tau=_share(agreement[rater].total, agreement[rater].count),
            gold_right=_share(seen.gold_right, seen.gold_seen),
            repeats_agreed=_share(seen.repeats_agreed, seen.repeats_seen),
            hasty=_share(seen.hasty_answers, len(seen.dwell)),
        )
        for rater, seen in checked.items()
    }


def describe_pool(tasks: Sequence[Sequence[Answer]], ratings: Mapping[str, RaterQuality]) -> PoolQuality:
    """What an operator wants to know of all raters together, as figures and as a statement of whole sentences."""
    raters = {answer.rater for task in tasks for answer in task}
    count = sum(len(task) for task in tasks)
    alpha = measure_pool_agreement(tasks)
    low = tuple(sorted(rater for rater in raters & ratings.keys() if ratings[rater].weight < LOW_WEIGHT))
    sentences = [f"{_say_count(len(raters), 'rater')} gave {_say_count(count, 'answer')}."]
    if alpha is None:
        sentences.append("How far raters agree is not known: no image has an order by two of them.")
    else:
        sentences.append(f"Their agreement is {alpha:.2f} (Krippendorff's alpha: 1 is perfect, 0 is chance).")
    if low:
        counts = "counts" if len(low) == 1 else "count"
        sentences.append(f"{_say_count(len(low), 'rater')} {counts} less than half: {', '.join(low)}.")
    return PoolQuality(len(raters), count, alpha, low, " ".join(sentences))


@dataclass(frozen=True)
class _RatedTask:
    """One task's answers, and of each rater the wins (K, K) of all of the rater's answers, unweighted."""

    answers: Sequence[Answer]
    wins: Mapping[str, Matrix] = field(repr=False)

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> _RatedTask:
        images = 1 + max((image for answer in answers for image in answer.ranked), default=0)
        of_rater = defaultdict(list)
        for answer in answers:
            of_rater[answer.rater].append(answer)
        return cls(answers, {rater: count_wins(own, images) for rater, own in of_rater.items()})


def _measure_left_out(tasks: Sequence[_RatedTask], weights: Mapping[str, float]) -> Mapping[str, _Agreement]:
    """Each rater's τ-b with the order of the others, by the share of comparisons that an image won (Borda)."""
    found: defaultdict[str, _Agreement] = defaultdict(_Agreement)
    for task in tasks:
        everybody = sum((weights[rater] * wins for rater, wins in task.wins.items()), np.zeros(1))
        for answer in task.answers:
            others = everybody - weights[answer.rater] * task.wins[answer.rater]
            tau = _correlate_with_wins(answer, others)
            if tau is not None:
                found[answer.rater].total += tau
                found[answer.rater].count += 1
    return found


def _correlate_with_wins(answer: Answer, wins: Matrix) -> float | None:
    """τ-b of an answer and the win shares over the images that it ranked, as far as others compared them."""
    index = np.array(answer.ranked, dtype=np.intp)
    share = compute_win_shares(wins[np.ix_(index, index)])
    known = ~np.isnan(share)
    tier = answer.tier_numbers
    return correlate_orders(np.array([-tier[image] for image in answer.ranked])[known], share[known])


def compute_win_shares(wins: Matrix) -> NDArray[np.float64]:
    """(K,) Borda: the share of an image's comparisons that it won, NaN without any; wins (K, K), row over column."""
    won, games = wins.sum(1), wins.sum(1) + wins.sum(0)
    share = np.full(len(wins), np.nan)
    np.divide(won, games, out=share, where=games > 1e-9)  # what is left of a difference of sums is no comparison
    rounded: NDArray[np.float64] = np.round(share, 9)  # equal records are equal
    return rounded


def _multiply_check_factors(checks: Mapping[str, RaterChecks]) -> dict[str, float]:
    """For each rater the product of gold, repeats and dwell."""
    pool = _average([(seen.repeats_agreed, seen.repeats_seen, 1.0) for seen in checks.values()])
    return {
        rater: (seen.gold_right + PRIOR_CHECKS) / (seen.gold_seen + PRIOR_CHECKS)
        * _compare_with_pool(seen.repeats_agreed, seen.repeats_seen, pool, PRIOR_CHECKS, MIN_POOL_REPEATS)
        * (1 - seen.hasty_answers / (len(seen.dwell) + PRIOR_ANSWERS))
        for rater, seen in checks.items()
    }  # fmt: skip


def _compare_with_pool(total: float, count: int, pool: float, prior: float, least: float) -> float:
    """0…1: the mean of `count` observations and `prior` imagined ones at the pool's mean, over the pool's mean."""
    if pool < least:
        return 1.0
    return float(np.clip((total + prior * pool) / (count + prior) / pool, 0.0, 1.0))


def _average(observed: Sequence[tuple[float, int, float]]) -> float:
    """Mean over (sum, count, weight) of several raters; 0 without an observation."""
    counted = sum(weight * count for _, count, weight in observed)
    return sum(weight * total for total, _, weight in observed) / counted if counted else 0.0


def _to_weight(factor: float) -> float:
    return MIN_WEIGHT + (1 - MIN_WEIGHT) * factor


def _share(total: float, count: int) -> float | None:
    return total / count if count else None


def _say_count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
