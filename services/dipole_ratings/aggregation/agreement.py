"""How far raters agree: Kendall's τ-b within a task, Krippendorff's ordinal alpha over a pool of tasks.

No information is None, never 0 and never NaN: constants have no order to agree with, one rater nobody to agree with.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dipole_ratings.aggregation.answers import Answer, get_weight

AGREED_TAU = 0.5  # from where on two answers say the same: of four images in order, at most one pair is swapped


def correlate_orders(one: ArrayLike, other: ArrayLike) -> float | None:
    """Kendall's τ-b of two lists of numbers (n,), −1…1; None where either is constant.

    By its definition, a correlation of the signs of all differences. scipy.stats.kendalltau has the same statistic and
    a p-value with it, which takes fifty times as long on a handful of images.
    """
    x, y = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    p, q = np.sign(x[:, None] - x), np.sign(y[:, None] - y)  # (n, n)
    length = np.sqrt(np.vdot(p, p) * np.vdot(q, q))
    return float(np.clip(np.vdot(p, q) / length, -1.0, 1.0)) if length else None


def correlate_answers(one: Answer, other: Answer) -> float | None:
    """τ-b over the images that both ranked; None where they share no two, or either has them all tied."""
    first, second = one.tier_numbers, other.tier_numbers
    common = sorted(first.keys() & second.keys())
    return correlate_orders([first[image] for image in common], [second[image] for image in common])


def is_same_answer(one: Answer, other: Answer) -> bool:
    """Whether a repeat says what the first answer said, or an answer what the gold says: τ-b of at least 0.5.

    Where τ-b says nothing (none usable, all tied), both must be so of the same images.
    """
    tau = correlate_answers(one, other)
    if tau is None:
        return (one.none_usable, one.has_order, {*one.ranked}) == (other.none_usable, other.has_order, {*other.ranked})
    return tau >= AGREED_TAU


def measure_task_agreement(answers: Sequence[Answer], weights: Mapping[str, float] | None = None) -> float | None:
    """Mean τ-b of one task over all pairs of answers by different raters; None without such a pair.

    Each pair counts by the pairs of images that it has in common and by both raters' weights. Where all ranked the same
    images and nobody has a weight, that is the plain mean.
    """
    total = counted = 0.0
    for one, other in itertools.combinations(answers, 2):
        tau = None if one.rater == other.rater else correlate_answers(one, other)
        if tau is not None:
            common = len({*one.ranked} & {*other.ranked})
            weight = common * (common - 1) * get_weight(weights, one.rater) * get_weight(weights, other.rater)
            total += weight * tau
            counted += weight
    return total / counted if counted else None


def measure_pool_agreement(tasks: Sequence[Sequence[Answer]]) -> float | None:
    """Krippendorff's alpha for ordinal data over the answers of many tasks: 1 perfect, 0 chance, below 0 opposed.

    A unit is an image of a task, a rater's value its mid-rank among the images of the answer as a share of them, so
    that answers with other numbers of tiers or images can be compared. None for fewer than two raters on the same
    images, or where all values are one.
    """
    units = [list(by_rater.values()) for task in tasks for by_rater in _rank_shares(task).values()]
    pairable = [unit for unit in units if len(unit) > 1]
    domain = np.unique([value for unit in pairable for value in unit])
    if len(domain) < 2:
        return None
    counts = np.stack([(np.array(unit)[:, None] == domain).sum(0) for unit in pairable])  # (units, values)
    return ordinal_alpha(counts.astype(np.float64))


def ordinal_alpha(counts: NDArray[np.float64]) -> float:
    """Alpha of counts (U, V): how many gave unit u the v-th of the values, which are in order; two or more a unit.

    K. Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011, section D with the ordinal metric of section E.
    Written out because the package `krippendorff`, which tests compare with, is under the GPL.
    """
    of_unit = counts.sum(1)
    scaled = counts / (of_unit - 1)[:, None]
    observed = scaled.T @ counts - np.diag(scaled.sum(0))  # (V, V) coincidences
    of_value = counts.sum(0)
    expected = np.outer(of_value, of_value) - np.diag(of_value)
    middle = np.cumsum(of_value) - of_value / 2
    distance = np.square(middle[:, None] - middle)  # between the middles of two values' stretches
    return float(1 - (of_value.sum() - 1) * np.vdot(observed, distance) / np.vdot(expected, distance))


def _rank_shares(answers: Sequence[Answer]) -> dict[int, dict[str, float]]:
    """For each image, by rater: its mid-rank in 0…1, the mean over the rater's answers that have it."""
    found: defaultdict[int, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for answer in answers:
        above, count = 0, len(answer.ranked)
        for tier in answer.tiers:
            for image in tier:
                found[image][answer.rater].append((above + len(tier) / 2) / count)
            above += len(tier)
    return {
        image: {rater: round(sum(shares) / len(shares), 9) for rater, shares in by_rater.items()}
        for image, by_rater in found.items()
    }
