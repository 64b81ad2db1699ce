"""Scores of a task's K images out of all its answers, or why there are none, and whether another rater would help.

Bradley-Terry with a ridge: `Σ w·log(1 + e^−(s_i − s_j)) + 0.1‖s‖²` over all pairs in which i beat j is strictly convex.
So there is one minimum, it sums to 0, and it exists for one rater too, whose order alone has no finite likeliest one.

Answers of several kinds meet as their raters would expect:

    most say none usable      no scores: the weight of those raters is more than half
    half say none usable      another rater; if none comes, those count who saw an order
    fewer say none usable     those count who saw an order
    ties only                 no scores: the images cannot be told apart, and nobody else is asked to
    raters contradict         another rater; if none comes, no scores
    images not compared       another rater; if none comes, no scores, or scores of those that were (`partial`)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import root
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

from dipole_ratings.aggregation.agreement import measure_task_agreement
from dipole_ratings.aggregation.answers import Answer, Matrix, count_wins, get_weight

RIDGE = 0.1
MIN_AGREEMENT = 0.2  # mean τ-b
ROUNDED_DIGITS = 6  # of what the solver finds; images with equal records are equal

Unclear = Literal["ask", "drop", "partial"]
Code = Literal["no_answers", "none_usable", "all_tied", "not_compared", "disagreement", "no_order"]

REASONS: dict[Code, str] = {
    "no_answers": "No rater has ranked any of the images.",
    "none_usable": "Raters say that none of the images is usable.",
    "all_tied": "Raters see no difference between the images.",
    "not_compared": "Not all of the images were compared with one another.",
    "disagreement": "Raters disagree on the order of the images.",
    "no_order": "The raters' answers cancel each other out.",
}


@dataclass(frozen=True)
class Aggregate:
    """`scores` (K,), centred, higher is better; None without an order, and None for an image that could not be scored.

    code, reason          a word and a sentence: why all scores, or with `partial` some, are null; None if all are there
    agreement             mean τ-b of the task's raters; None where fewer than two have an order of the same images
    needs_another_rater   only with `unclear="ask"`: there are no scores yet, and one more answer may give them
    """

    scores: tuple[float | None, ...] | None
    reason: str | None = None
    agreement: float | None = None
    needs_another_rater: bool = False
    code: Code | None = None


def aggregate(
    answers: Sequence[Answer],
    images: int,
    weights: Mapping[str, float] | None = None,
    *,
    unclear: Unclear = "ask",
) -> Aggregate:
    """Scores of `images` images. A rater may have several answers, each on a subset; one without a weight has 1.

    `unclear` says what becomes of a task whose answers do not settle it:
        ask       another rater can be asked
        drop      nobody else will come: no scores
        partial   nobody else will come: images that were compared are scored, the others are null. Where comparisons
                  leave the task in pieces, the largest is scored, by images and then by comparisons, if one is.

    ValueError for no images, an answer with an image that the task does not have, or a weight that is not positive.
    """
    if images < 1:
        raise ValueError(f"images: a task has at least one, and not {images}")
    wins = count_wins(answers, images, weights)
    agreement = measure_task_agreement(answers, weights)
    piece = _find_largest_piece(wins)
    obstacle = _find_obstacle(answers, weights, agreement, piece, images, unclear)
    if obstacle is None:
        scores = fit_scores(wins[np.ix_(piece, piece)])
        if images > 1 and np.ptp(scores) == 0:
            obstacle = Obstacle("no_order")
    if obstacle is not None:
        another = unclear == "ask" and obstacle.another_may_help
        return Aggregate(None, REASONS[obstacle.code], agreement, another, obstacle.code)
    of_image: list[float | None] = [None] * images
    for image, score in zip(piece, scores, strict=True):
        of_image[image] = float(score)
    if len(piece) < images:
        return Aggregate(tuple(of_image), REASONS["not_compared"], agreement, code="not_compared")
    return Aggregate(tuple(of_image), agreement=agreement)


def fit_scores(wins: Matrix, ridge: float = RIDGE) -> NDArray[np.float64]:
    """s (K,) that minimises Σ wins_ij·log(1 + e^−(s_i − s_j)) + ridge·‖s‖²; wins (K, K), the weight of row over column.

    The minimum is where the gradient is zero. MINPACK finds that to the last digits, and in a fifth of the time that
    scipy's minimisers take, some of which stop short where weights are large.
    """
    games = wins + wins.T

    def gradient(s: NDArray[np.float64]) -> NDArray[np.float64]:
        pull = wins * expit(s - s[:, None])  # (K, K): what is left to gain for the row over the column
        found: NDArray[np.float64] = pull.sum(0) - pull.sum(1) + 2 * ridge * s
        return found

    def hessian(s: NDArray[np.float64]) -> Matrix:
        gap = s - s[:, None]
        curvature = games * expit(gap) * expit(-gap)
        found: Matrix = np.diag(curvature.sum(1) + 2 * ridge) - curvature
        return found

    s = root(gradient, np.zeros(len(wins)), jac=hessian, options={"xtol": 1e-12}).x
    assert np.abs(gradient(s)).max() < 2 * ridge * 10**-ROUNDED_DIGITS, "the Hessian is at least 2·ridge: s is off"
    rounded: NDArray[np.float64] = np.round(s, ROUNDED_DIGITS) + 0.0  # no -0.0
    return rounded


@dataclass(frozen=True)
class Obstacle:
    """Why there are no scores, and whether one more answer could change that."""

    code: Code
    another_may_help: bool = True


def _find_obstacle(
    answers: Sequence[Answer],
    weights: Mapping[str, float] | None,
    agreement: float | None,
    piece: Sequence[int],
    images: int,
    unclear: Unclear,
) -> Obstacle | None:
    ordered = [answer for answer in answers if answer.ranked]
    usable = sum(get_weight(weights, answer.rater) for answer in ordered)
    unusable = sum(get_weight(weights, answer.rater) for answer in answers if answer.none_usable)
    is_split = bool(ordered) and math.isclose(unusable, usable)
    if unusable == usable == 0:
        return Obstacle("no_answers")
    if unusable > usable and not is_split:
        return Obstacle("none_usable", another_may_help=False)
    if is_split and unclear == "ask":
        return Obstacle("none_usable")
    if len(piece) < (1 if unclear == "partial" else images):
        return Obstacle("not_compared")
    if agreement is not None and agreement < MIN_AGREEMENT:
        return Obstacle("disagreement")
    if images > 1 and not any(answer.has_order and answer.ranked[0] in piece for answer in ordered):
        return Obstacle("all_tied", another_may_help=False)
    return None


def _find_largest_piece(wins: Matrix) -> list[int]:
    """The images of the largest piece of the comparison graph, by images and then by comparisons; none if two are."""
    if len(wins) == 1:
        return [0]
    games = wins + wins.T
    _, label = connected_components(games > 0, directed=False)
    pieces = [np.flatnonzero(label == number) for number in range(label.max() + 1)]
    sizes = [(len(piece), round(float(games[piece].sum()), ROUNDED_DIGITS)) for piece in pieces]
    largest = max(sizes)
    if largest[0] == 1 or sizes.count(largest) > 1:
        return []
    return [int(image) for image in pieces[sizes.index(largest)]]
