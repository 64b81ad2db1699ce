"""What ordering can go wrong, and does not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dipole_trainer.ranking.selection import (
    Selection,
    SkippedGroup,
    WeightedScores,
    combine_scores,
    normalize_scores,
    select_extremes,
    select_shown,
    shuffle_scores,
)

NAN = float("nan")
scores = st.lists(st.one_of(st.none(), st.floats(-50, 50), st.sampled_from([0.0, 1.0, NAN, float("inf")])), max_size=24)


@given(scores, st.integers(1, 8), st.integers(1, 8))
def test_positives_are_always_better_than_negatives(values: list[float | None], p: int, n: int) -> None:
    """Whatever comes in, no positive is equal to or worse than a negative, and sizes keep their bounds."""
    total = combine_scores({"r": WeightedScores(values, 1.0, "none")})
    chosen = select_extremes(total, p, n)
    if isinstance(chosen, SkippedGroup):
        return
    assert 1 <= len(chosen.positives) <= p
    assert 1 <= len(chosen.negatives) <= n
    assert total[list(chosen.positives)].min() > total[list(chosen.negatives)].max()


@given(st.lists(st.integers(-1000, 1000), min_size=16, max_size=16, unique=True), st.permutations(range(16)))
def test_choice_follows_the_candidates(values: list[int], order: list[int]) -> None:
    """Candidates in another order give the same choice."""
    total = np.array(values, float)
    one, other = select_extremes(total, 4, 4), select_extremes(total[order], 4, 4)
    assert isinstance(one, Selection)
    assert isinstance(other, Selection)
    assert {order[row] for row in other.positives} == set(one.positives)
    assert {order[row] for row in other.negatives} == set(one.negatives)


def test_a_missing_or_non_finite_score_leaves_the_group() -> None:
    """One NaN neither poisons the z-scores of the others nor sorts first."""
    total = combine_scores({"r": WeightedScores([1.0, NAN, 3.0, None, 2.0, float("inf")], 1.0)})
    assert np.isnan(total[[1, 3, 5]]).all()
    assert select_extremes(total, 1, 1) == Selection((2,), (0,))


def test_a_group_without_spread_is_skipped() -> None:
    """Also where float order alone would make an order."""
    assert isinstance(select_extremes(np.full(8, 0.3), 2, 2), SkippedGroup)
    assert isinstance(select_extremes(np.array([0.1 + 0.2, 0.3, 0.3, 0.1 + 0.2]), 1, 1), SkippedGroup)


def test_ties_across_the_cut_shrink_the_side() -> None:
    assert select_extremes(np.array([3.0, 2, 2, 2, 2, 1]), 3, 3) == Selection((0,), (5,))


def test_a_side_that_is_one_tie_keeps_its_first_rows() -> None:
    """Five right, eleven wrong: all five attract, and eight of the equally wrong repel."""
    assert select_extremes(np.array([1.0] * 5 + [0.0] * 11), 8, 8) == Selection((0, 1, 2, 3, 4), tuple(range(5, 13)))


@pytest.mark.parametrize(("valid", "sizes"), [(16, (8, 8)), (10, (5, 5)), (3, (2, 1)), (2, (1, 1))])
def test_few_candidates_shrink_both_sides(valid: int, sizes: tuple[int, int]) -> None:
    total = np.concatenate([np.arange(valid, dtype=float), np.full(16 - valid, NAN)])
    chosen = select_extremes(total, 8, 8)
    assert isinstance(chosen, Selection)
    assert (len(chosen.positives), len(chosen.negatives)) == sizes


def test_one_candidate_is_skipped_with_a_reason() -> None:
    assert select_extremes(np.array([1.0, NAN, NAN]), 1, 1) == SkippedGroup(
        "1 of 3 candidates have a score; at least 2 are needed"
    )


def test_held_out_rewards_take_no_part() -> None:
    watched = WeightedScores([None, None, None], 0.0)
    assert (
        combine_scores({"a": WeightedScores([1.0, 2.0, 3.0], 1.0), "b": watched}).tolist()
        == combine_scores({"a": WeightedScores([1.0, 2.0, 3.0], 1.0)}).tolist()
    )


def test_rewards_are_summed_by_weight_after_normalising() -> None:
    """A reward in other units weighs the same."""
    a, b = [0.0, 1.0, 2.0, 5.0], [5.0, 1.0, 2.0, 0.0]
    assert np.allclose(
        combine_scores({"a": WeightedScores(a, 1.0), "b": WeightedScores([100 * s for s in b], 1.0)}),
        combine_scores({"a": WeightedScores(a, 1.0), "b": WeightedScores(b, 1.0)}),
    )
    assert combine_scores({"a": WeightedScores(a, 2.0), "b": WeightedScores(b, 1.0)}).argmax() == 3


def test_ranks_of_people_join_a_models_scores() -> None:
    """Those that people were not shown take no part; among the others an order counts as ranks in -1..1, whatever its
    numbers, and a model's scores as z-scores of the same candidates.
    """
    shown = select_shown([5.0, 1.0, None, 3.0, 2.0, 4.0], best=2, worst=1)
    assert shown == {0, 1, 5}
    model, people = [5.0, 1.0, NAN, 3.0, 2.0, 4.0], [-2.0, -1.0, None, None, None, -3.0]
    total = combine_scores({"model": WeightedScores(model, 1.0), "people": WeightedScores(people, 0.5, "rank")})
    assert np.flatnonzero(np.isfinite(total)).tolist() == [0, 1, 5]
    among = np.array([5.0, 1.0, 4.0])
    assert np.allclose(total[[0, 1, 5]], (among - among.mean()) / among.std() + 0.5 * np.array([0.0, 1.0, -1.0]))


@pytest.mark.parametrize(("best", "worst"), [(3, 3), (0, 9), (9, 0)])
def test_all_are_shown_where_more_are_asked_for_than_have_a_score(best: int, worst: int) -> None:
    assert select_shown([1.0, None, 1.0, 0.0], best, worst) == {0, 2, 3}


def test_normalised_ranks_share_ties() -> None:
    assert normalize_scores(np.array([10.0, 7.0, 7.0, 1.0]), "rank").tolist() == [1.0, 0.0, 0.0, -1.0]


def test_shuffling_keeps_the_scores_and_the_gaps() -> None:
    """The control trains on the same numbers for other candidates."""
    total = np.array([1.0, NAN, 3.0, 4.0])
    mixed = shuffle_scores(total, np.random.default_rng(0))
    assert np.isnan(mixed[1])
    assert sorted(mixed[[0, 2, 3]]) == [1.0, 3.0, 4.0]
