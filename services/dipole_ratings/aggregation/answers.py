"""What raters said of one task's K images, the comparisons that follow, and the subsets in which many images are shown.

Images are their indices 0…K−1 in the task, whatever order or subset of them a rater saw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Answer:
    """One rater's tiers, best first. Images that no tier names were not shown or left unranked: unobserved, not worst.

    A tier may be empty and says nothing then. `none_usable` goes with no tiers: it tells of the images as a whole and
    orders nothing. ValueError where an image stands in two places, is negative, or both kinds of answer are given.
    """

    rater: str
    tiers: tuple[tuple[int, ...], ...] = ()
    none_usable: bool = False

    def __post_init__(self) -> None:
        ranked = self.ranked
        if len(set(ranked)) != len(ranked):
            twice = next(image for image in ranked if ranked.count(image) > 1)
            raise ValueError(f"tiers: image {twice} stands in two places")
        if any(image < 0 for image in ranked):
            raise ValueError(f"tiers: image {min(ranked)} is negative")
        if self.none_usable and ranked:
            raise ValueError("none_usable: an answer that ranks images cannot say that none is usable")

    @property
    def ranked(self) -> tuple[int, ...]:
        return tuple(image for tier in self.tiers for image in tier)

    @property
    def tier_numbers(self) -> dict[int, int]:
        """The tier of each ranked image; lower is better."""
        return {image: number for number, tier in enumerate(self.tiers) for image in tier}

    @property
    def has_order(self) -> bool:
        """Whether it puts any image above another."""
        return sum(bool(tier) for tier in self.tiers) > 1


def count_wins(answers: Sequence[Answer], images: int, weights: Mapping[str, float] | None = None) -> Matrix:
    """wins (K, K): the weight of the answers that put the row's image above the column's; a tie is half a win each way.

    A rater without a weight has 1. ValueError where an answer names an image that the task does not have, or a weight
    is not positive and finite.
    """
    wins = np.zeros((images, images))
    for answer in answers:
        index = np.array(answer.ranked, dtype=np.intp)
        if index.size and index.max() >= images:
            raise ValueError(f"tiers: image {index.max()} is not one of the task's {images}")
        tier = np.repeat(np.arange(len(answer.tiers)), [len(each) for each in answer.tiers])  # (n,), as `index`
        beats = (tier[:, None] < tier) + 0.5 * (tier[:, None] == tier)
        np.fill_diagonal(beats, 0.0)
        wins[np.ix_(index, index)] += get_weight(weights, answer.rater) * beats
    return wins


def get_weight(weights: Mapping[str, float] | None, rater: str) -> float:
    """How much a rater counts; 1 where nothing is said. ValueError if not positive and finite."""
    weight = 1.0 if weights is None else weights.get(rater, 1.0)
    if not 0 < weight < np.inf:
        raise ValueError(f"weights: {weight} of rater {rater!r} is not positive and finite")
    return weight


def subsets(images: int, shown: int) -> list[tuple[int, ...]]:
    """Subsets of `shown` images each (all of them, if they are no more) that overlap into one connected whole.

    Windows on a ring, evenly spaced: as few as can connect all images, ⌈(K − 1) / (shown − 1)⌉, and no image is shown
    more than once oftener than another. ValueError for no image, or for subsets of one, which compare nothing.
    """
    if images < 1 or shown < 2:
        raise ValueError(f"images: {images} cannot be shown {shown} at a time; at least 1 and 2 are needed")
    if images <= shown:
        return [tuple(range(images))]
    count = -((1 - images) // (shown - 1))
    starts = (number * images // count for number in range(count))
    return [tuple(sorted((start + step) % images for step in range(shown))) for start in starts]
