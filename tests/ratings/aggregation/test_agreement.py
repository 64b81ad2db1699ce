"""Agreement of a task's raters and of a pool: equal to scipy and krippendorff, and no number where there is none."""

from __future__ import annotations

import math

import krippendorff
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from dipole_ratings.aggregation.agreement import (
    correlate_answers,
    correlate_orders,
    is_same_answer,
    measure_pool_agreement,
    measure_task_agreement,
    ordinal_alpha,
)
from dipole_ratings.aggregation.answers import Answer

from .drawn_answers import draw_answers, order

VALUES = st.lists(st.integers(0, 4), min_size=6, max_size=6)
GAPPY_ROW = st.lists(st.one_of(st.none(), st.integers(1, 5)), min_size=7, max_size=7)


@settings(max_examples=60, deadline=None)
@given(VALUES, VALUES)
def test_tau_is_that_of_scipy(one: list[int], other: list[int]) -> None:
    """Kendall's τ-b with ties; scipy's NaN for constants is None."""
    ours, theirs = correlate_orders(one, other), kendalltau(one, other).statistic
    assert (ours is None) == math.isnan(theirs)
    assert ours is None or ours == pytest.approx(theirs, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(GAPPY_ROW, min_size=2, max_size=5))
def test_alpha_is_that_of_krippendorff(values: list[list[int | None]]) -> None:
    """With gaps, over the units that two raters have, wherever there are two values."""
    table = np.array([[np.nan if value is None else value for value in row] for row in values])
    table = table[:, (~np.isnan(table)).sum(0) > 1]
    domain = np.unique(table[~np.isnan(table)])
    if len(domain) > 1:
        counts = (table.T[:, :, None] == domain).sum(1).astype(float)
        theirs = krippendorff.alpha(table, level_of_measurement="ordinal")
        assert ordinal_alpha(counts) == pytest.approx(theirs, abs=1e-9)


def test_a_published_alpha() -> None:
    """The example of Krippendorff's paper: 4 raters, 12 units, 5 values, ordinal 0.815."""
    nan = np.nan
    table = np.array(
        [
            [1, 2, 3, 3, 2, 1, 4, 1, 2, nan, nan, nan],
            [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, nan, 3],
            [nan, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, nan],
            [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, nan],
        ]
    )
    counts = (table.T[:, :, None] == np.arange(1, 6)).sum(1).astype(float)
    assert round(ordinal_alpha(counts[counts.sum(1) > 1]), 3) == 0.815


def test_agreement_of_a_task_is_the_mean_over_pairs_of_raters() -> None:
    """Of 1, −1/3 and −1/3; with a weight, pairs count by the weights of both."""
    answers = [order("a", 0, 1, 2), order("b", 0, 1, 2), order("c", 1, 2, 0)]
    assert measure_task_agreement(answers) == pytest.approx((1 - 1 / 3 - 1 / 3) / 3)
    assert measure_task_agreement(answers, {"c": 0.25}) == pytest.approx((1 - 0.25 * 2 / 3) / 1.5)


@pytest.mark.parametrize(
    "answers",
    [
        [],
        [order("a", 0, 1)],
        [order("a", 0, 1), order("a", 1, 0)],  # one rater's two answers
        [order("a", 0, 1), order("b", (0, 1))],
        [order("a", 0, 1), order("b", 1, 2)],
        [order("a", 0, 1), Answer("b", none_usable=True)],
        [order("a", 0, 1), Answer("b")],
    ],
)
def test_where_nobody_can_be_compared_there_is_no_agreement(answers: list[Answer]) -> None:
    """None and not NaN, without a warning."""
    assert measure_task_agreement(answers) is None


def test_only_common_images_count() -> None:
    """An image that one left unranked disagrees with nobody, and a pair of answers counts by what it has in common."""
    assert correlate_answers(order("a", 3, 0, 1), order("b", 0, 1, 2)) == 1
    answers = [order("a", 0, 1, 2, 3), order("c", 0, 1, 2, 3), order("b", 1, 0)]
    assert measure_task_agreement(answers) == pytest.approx((6 - 1 - 1) / 8)


@settings(max_examples=60, deadline=None)
@given(draw_answers(5))
def test_agreement_stays_in_its_bounds(answers: list[Answer]) -> None:
    """−1…1 for tasks, at most 1 for pools, whatever is ranked."""
    task, pool = measure_task_agreement(answers), measure_pool_agreement([answers, answers])
    assert task is None or -1 <= task <= 1
    assert pool is None or pool <= 1 + 1e-9


def test_a_pool_that_agrees_and_one_that_does_not() -> None:
    """1 for equal orders, about 0 for random ones, below 0 for opposed ones."""
    rng = np.random.default_rng(0)
    same = [[order("a", *task), order("b", *task)] for task in (rng.permutation(5).tolist() for _ in range(20))]
    chance = [[order(rater, *rng.permutation(5).tolist()) for rater in "abc"] for _ in range(400)]
    opposed = [[order("a", *task), order("b", *reversed(task))] for task in ([0, 1, 2, 3], [3, 1, 0, 2])]
    assert measure_pool_agreement(same) == pytest.approx(1)
    assert measure_pool_agreement(chance) == pytest.approx(0, abs=0.05)
    assert (measure_pool_agreement(opposed) or 0) < -0.5


def test_a_pool_without_two_raters_or_two_values_has_no_alpha() -> None:
    """Nobody, one rater on each task, two on different images, two who tie everything."""
    assert measure_pool_agreement([]) is None
    assert measure_pool_agreement([[order("a", 0, 1)], [order("b", 0, 1)]]) is None
    assert measure_pool_agreement([[order("a", 0, 1), order("b", 2, 3)]]) is None
    assert measure_pool_agreement([[order("a", (0, 1)), order("b", (0, 1))]]) is None


def test_a_repeat_that_says_the_same() -> None:
    """One swapped pair of four is the same, a reverse is not; without an order both say that of the same images."""
    first, unusable = order("a", 0, 1, 2, 3), Answer("a", none_usable=True)
    assert is_same_answer(first, order("a", 0, 1, 3, 2))
    assert not is_same_answer(first, order("a", 3, 2, 1, 0))
    assert not is_same_answer(first, order("a", (0, 1, 2, 3)))
    assert is_same_answer(order("a", (0, 1)), order("a", (1, 0)))
    assert is_same_answer(unusable, unusable)
    assert not is_same_answer(unusable, first)
    assert not is_same_answer(unusable, Answer("a"))
