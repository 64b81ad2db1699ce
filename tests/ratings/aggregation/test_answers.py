"""Answers, the comparisons they make, and subsets of many images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dipole_ratings.aggregation.answers import Answer, count_wins, subsets

from .drawn_answers import draw_answer, order


def test_tiers_become_wins_and_a_tie_is_half_a_win_each_way() -> None:
    """Of {0}, {1, 2} with 3 unranked: 0 beats both, they tie, and nothing is said of 3."""
    wins = count_wins([Answer("a", ((0,), (1, 2)))], 4)
    assert wins.tolist() == [[0, 1, 1, 0], [0, 0, 0.5, 0], [0, 0.5, 0, 0], [0, 0, 0, 0]]


@settings(max_examples=60, deadline=None)
@given(draw_answer("a", 5))
def test_each_pair_of_ranked_images_is_one_comparison(answer: Answer) -> None:
    """Won plus lost is 1 for two ranked images and 0 where one is unranked."""
    wins = count_wins([answer], 5)
    ranked = np.isin(np.arange(5), answer.ranked)
    assert np.array_equal(wins + wins.T, np.outer(ranked, ranked) & ~np.eye(5, dtype=bool))


def test_an_empty_tier_says_nothing() -> None:
    """A rater who leaves tier 2 empty says what one says who does not."""
    assert np.array_equal(count_wins([Answer("a", ((0,), (), (1,)))], 2), count_wins([order("a", 0, 1)], 2))


def test_none_usable_compares_nothing() -> None:
    """It is neither a tie nor a loss."""
    assert not count_wins([Answer("a", none_usable=True)], 3).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Answer("a", ((0, 1), (1,))), "tiers: image 1 stands in two places"),
        (lambda: Answer("a", ((0, -1),)), "tiers: image -1 is negative"),
        (lambda: Answer("a", ((0,),), none_usable=True), "none_usable: an answer that ranks"),
        (lambda: count_wins([order("a", 0, 3)], 3), "tiers: image 3 is not one of the task's 3"),
        (lambda: count_wins([order("a", 0, 1)], 2, {"a": 0.0}), "weights: 0.0 of rater 'a' is not positive"),
        (lambda: count_wins([order("a", 0, 1)], 2, {"a": float("nan")}), "weights: nan of rater 'a' is not positive"),
        (lambda: subsets(0, 4), "images: 0 cannot be shown 4 at a time"),
        (lambda: subsets(5, 1), "images: 5 cannot be shown 1 at a time"),
    ],
)
def test_what_is_wrong_is_named(make: Callable[[], object], message: str) -> None:
    """Never an answer that counts twice, nor an IndexError from inside numpy."""
    with pytest.raises(ValueError, match=message):
        make()


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 64), st.integers(2, 8))
def test_subsets_connect_all_images_with_the_fewest_tasks_and_show_them_equally_often(images: int, shown: int) -> None:
    """Subsets overlap into one whole, one fewer could not hold all images, and counts differ by one at most."""
    found = subsets(images, shown)
    assert all(len(set(each)) == len(each) == min(shown, images) and list(each) == sorted(each) for each in found)
    reached, waiting = set(found[0]), found[1:]
    while touching := [each for each in waiting if reached & set(each)]:
        reached.update(*touching)
        waiting = [each for each in waiting if each not in touching]
    assert reached == set(range(images))
    assert len(found) == 1 or 1 + (len(found) - 1) * (shown - 1) < images
    assert np.ptp(np.bincount([image for each in found for image in each])) <= 1
    assert len(set(found)) == len(found)
    assert found == subsets(images, shown)


def test_seven_images_four_at_a_time_are_two_tasks() -> None:
    """An example to look at, and a group that needs no subsets."""
    assert subsets(7, 4) == [(0, 1, 2, 3), (3, 4, 5, 6)]
    assert subsets(4, 6) == [(0, 1, 2, 3)]
