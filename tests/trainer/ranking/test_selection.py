"""What ordering can go wrong, and does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dipole_trainer.ranking.groups import RankedGroup, RewardResult
from dipole_trainer.ranking.selection import (
    GroupOrder,
    Selection,
    SkippedGroup,
    WeightedScores,
    combine_scores,
    normalize_scores,
    order_group,
    select_extremes,
    select_shown,
    shuffle_scores,
)
from dipole_trainer.spec import RewardSpec

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
        "too_few_scores", "1 of 3 candidates have a score; at least 2 are needed"
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


@pytest.mark.parametrize("unit", [1e-300, 1.0, 1e300])
def test_z_scores_know_no_unit(unit: float) -> None:
    scores = np.array([0.0, 1.0, 3.0])
    assert normalize_scores(unit * scores, "zscore") == pytest.approx(normalize_scores(scores, "zscore"))


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


def rewards(**specs: dict[str, Any]) -> list[RewardSpec]:
    return [RewardSpec.model_validate({"name": name, **fields}) for name, fields in specs.items()]


def answers(**scores: list[float | None]) -> RankedGroup:
    return RankedGroup("0.0", {name: RewardResult(scores=tuple(each)) for name, each in scores.items()})


def test_a_gate_and_a_negative_weight_by_hand() -> None:
    """Blur is to fall, only where safe ≥ 0.9: the sharpest fails the gate and is the first that repels. z-scores of
    blur 4, 1, 2, 3 are ±1.342 and ±0.447; the range of their negatives, 2.683, and 1 are taken off who fails.
    """
    ranked = answers(blur=[4.0, 1.0, 2.0, 3.0], safe=[0.95, 0.2, 0.9, 1.0])
    job = rewards(blur={"weight": -1.0}, safe={"weight": 0, "at_least": 0.9})
    found = order_group(ranked, job, positives=2, negatives=2)
    assert isinstance(found, GroupOrder)
    root = 0.2**0.5
    assert found.total == pytest.approx([-3 * root, 3 * root - (6 * root + 1), root, -root])
    assert found.selection == Selection((2, 3), (1, 0))
    assert found.gated == 1


@given(
    st.lists(st.tuples(st.floats(-9, 9), st.one_of(st.none(), st.floats(0, 1))), min_size=2, max_size=16),
    st.integers(1, 8), st.integers(1, 8), st.booleans(),
)  # fmt: skip
def test_nobody_who_fails_a_gate_attracts(
    rows: list[tuple[float, float | None]], p: int, n: int, shuffled: bool
) -> None:
    """Nor anybody of whom it is unknown; a shuffled group lets as many attract as pass."""
    ranked = answers(good=[good for good, _ in rows], safe=[safe for _, safe in rows])
    job = rewards(good={}, safe={"weight": 0, "at_least": 0.5})
    shuffle = np.random.default_rng(0) if shuffled else None
    found = order_group(ranked, job, positives=p, negatives=n, shuffle=shuffle)
    passing = {row for row, (_, safe) in enumerate(rows) if safe is not None and safe >= 0.5}
    if isinstance(found, SkippedGroup):
        return
    assert 1 <= len(found.selection.positives) <= min(p, len(passing))
    assert all(rows[row][1] is not None for row in (*found.selection.positives, *found.selection.negatives))
    if not shuffled:
        assert set(found.selection.positives) <= passing


def test_a_gate_that_all_pass_or_that_is_not_asked_changes_nothing() -> None:
    scores = [0.3, 0.1, 0.8, 0.5, 0.9]
    plain = order_group(answers(good=scores), rewards(good={}), positives=2, negatives=2)
    job = rewards(good={}, safe={"weight": 0, "at_least": 0.5})
    gated = order_group(answers(good=scores, safe=[0.5] * 5), job, positives=2, negatives=2)
    assert isinstance(plain, GroupOrder)
    assert isinstance(gated, GroupOrder)
    assert (gated.selection, gated.gated, list(gated.total)) == (plain.selection, 0, list(plain.total))


def test_a_group_that_no_gate_can_judge_is_skipped_with_a_reason() -> None:
    job = rewards(good={}, safe={"weight": 0, "at_least": 0.5})

    def reason(safe: RewardResult) -> str:
        ranked = RankedGroup("0.0", {"good": RewardResult(scores=(0.1, 0.2)), "safe": safe})
        found = order_group(ranked, job, positives=1, negatives=1)
        assert isinstance(found, SkippedGroup)
        return found.reason

    assert reason(RewardResult(scores=(0.1, 0.2))) == "no candidate passes safe ≥ 0.5"
    assert "an order and no scores" in reason(RewardResult(scores=(2.0, 1.0), ordinal=True))
    assert reason(RewardResult(scores=(), failure="timeout: 60 s")) == "required reward safe: timeout: 60 s"


def test_a_gate_is_required_and_a_held_out_reward_is_not() -> None:
    watched, gate, optional = rewards(
        a={"weight": 0}, b={"weight": 0, "at_least": 0}, c={"at_least": 1, "required": False}
    )
    assert (watched.required, gate.required, optional.required) == (False, True, False)
    assert (watched.is_held_out, gate.is_held_out, gate.is_trained, optional.is_trained) == (True, False, False, True)
