"""Scores of a task: what the fit is, what it keeps when names change, and when there is none."""

from __future__ import annotations

import itertools
from random import Random

import choix
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dipole_ratings.aggregation.answers import Answer, count_wins, subsets
from dipole_ratings.aggregation.raters import compute_win_shares
from dipole_ratings.aggregation.scores import Unclear, aggregate, fit_scores

from .drawn_answers import draw_answers, order, relabel

K = 5
NONE_USABLE = [Answer(f"none {number}", none_usable=True) for number in range(3)]
LAST: tuple[Unclear, ...] = ("drop", "partial")
EVERY: tuple[Unclear, ...] = ("ask", *LAST)


def list_pairs(answers: list[Answer]) -> list[tuple[int, int]]:
    """(winner, loser) of each comparison, doubled, so that a tie is once each way; the ridge has to be doubled too."""
    pairs = []
    for answer in answers:
        tier = answer.tier_numbers
        for i, j in itertools.permutations(answer.ranked, 2):
            pairs += [(i, j)] * (2 if tier[i] < tier[j] else tier[i] == tier[j])
    return pairs


@settings(max_examples=40, deadline=None)
@given(draw_answers(K))
def test_scores_are_those_of_choix(answers: list[Answer]) -> None:
    """opt_pairwise finds the same: at alpha 0.1 for orders without ties, at 0.2 for all comparisons doubled."""
    theirs = choix.opt_pairwise(K, list_pairs(answers), alpha=0.2, tol=1e-8)
    assert fit_scores(count_wins(answers, K)) == pytest.approx(theirs, abs=1e-5)
    strict = [answer for answer in answers if all(len(tier) < 2 for tier in answer.tiers)]
    theirs = choix.opt_pairwise(K, list_pairs(strict)[::2], alpha=0.1, tol=1e-8)
    assert fit_scores(count_wins(strict, K)) == pytest.approx(theirs, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(draw_answers(K, complete=True))
def test_complete_answers_are_ordered_as_borda_orders_them(answers: list[Answer]) -> None:
    """Where everybody ranked everything, scores order images by the share of comparisons won, ties included."""
    wins = count_wins(answers, K)
    scores, shares = fit_scores(wins), compute_win_shares(wins)
    assert np.array_equal(np.sign(scores[:, None] - scores), np.sign(shares[:, None] - shares))


@settings(max_examples=60, deadline=None)
@given(draw_answers(K), st.permutations(range(K)))
def test_scores_go_with_the_images(answers: list[Answer], new_index: list[int]) -> None:
    """Images called otherwise have the same scores under their new names, and nothing else changes."""
    before = aggregate(answers, K, unclear="partial")
    after = aggregate([relabel(answer, new_index) for answer in answers], K, unclear="partial")
    assert (after.code, after.needs_another_rater) == (before.code, before.needs_another_rater)
    assert after.agreement == pytest.approx(before.agreement)
    assert (after.scores is None) == (before.scores is None)
    if before.scores is not None and after.scores is not None:
        expected = [None if score is None else pytest.approx(score, abs=2e-6) for score in before.scores]
        assert [after.scores[new] for new in new_index] == expected


@settings(max_examples=60, deadline=None)
@given(draw_answers(K), st.randoms(use_true_random=False))
def test_neither_the_order_nor_the_names_of_raters_count(answers: list[Answer], random: Random) -> None:
    """Answers in another order, by raters of other names, give the same aggregate."""
    shuffled = [Answer(f"somebody {answer.rater}", answer.tiers) for answer in answers]
    random.shuffle(shuffled)
    before, after = aggregate(answers, K), aggregate(shuffled, K)
    assert (after.code, after.needs_another_rater) == (before.code, before.needs_another_rater)
    if before.scores is not None:
        assert after.scores == pytest.approx(before.scores, abs=2e-6)


@settings(max_examples=60, deadline=None)
@given(draw_answers(K), st.integers(2, 4))
def test_a_rater_of_weight_w_counts_as_w_raters(answers: list[Answer], weight: int) -> None:
    """The first one's weight does what as many copies of the answer do."""
    copies = [Answer(f"copy {number}", answers[0].tiers) for number in range(weight - 1)]
    weighted = fit_scores(count_wins(answers, K, {answers[0].rater: float(weight)}))
    assert weighted == pytest.approx(fit_scores(count_wins([*answers, *copies], K)), abs=2e-6)


@settings(max_examples=60, deadline=None)
@given(draw_answers(K))
def test_twice_the_evidence_draws_scores_apart(answers: list[Answer]) -> None:
    """All answers doubled are all weights doubled, and scores are further from 0, where the ridge pulls them."""
    wins = count_wins(answers, K)
    once, twice = fit_scores(wins), fit_scores(2 * wins)
    assert twice == pytest.approx(fit_scores(count_wins(answers * 2, K)), abs=2e-6)
    if np.ptp(once):
        assert np.linalg.norm(twice) > np.linalg.norm(once)
    else:
        assert np.ptp(twice) == 0


@settings(max_examples=60, deadline=None)
@given(draw_answers(K, complete=True), st.integers(0, K - 1))
def test_whoever_is_always_in_the_best_tier_has_the_best_score(answers: list[Answer], best: int) -> None:
    """And a better one than every image that was ever put below it."""
    lifted = []
    for answer in answers:
        tiers = [tuple(image for image in tier if image != best) for tier in answer.tiers]
        first = next(number for number, tier in enumerate(answer.tiers) if tier)
        tiers[first] = (*tiers[first], best)
        lifted.append(Answer(answer.rater, tuple(tiers)))
    scores = fit_scores(count_wins(lifted, K))
    places = [answer.tier_numbers for answer in lifted]
    for image in set(range(K)) - {best}:
        was_below = any(tier[image] > tier[best] for tier in places)
        assert scores[best] > scores[image] if was_below else scores[best] == scores[image]


@settings(max_examples=60, deadline=None)
@given(draw_answers(K), st.sampled_from(EVERY))
def test_an_aggregate_is_whole(answers: list[Answer], unclear: Unclear) -> None:
    """Scores are centred and not all equal; without them there is a reason; a rater is asked for by `ask` alone."""
    found = aggregate(answers, K, unclear=unclear)
    assert (found.code is None) == (found.reason is None)
    assert not found.needs_another_rater or (unclear == "ask" and found.scores is None)
    if found.scores is None:
        assert found.reason is not None
        return
    scored = [score for score in found.scores if score is not None]
    assert len(found.scores) == K
    assert sum(scored) == pytest.approx(0, abs=1e-5)
    assert len(set(scored)) > 1
    assert len(scored) == K if found.code is None else (unclear, found.code) == ("partial", "not_compared")


def test_one_rater_is_enough() -> None:
    """An order by one rater has finite scores, where Bradley-Terry alone has none."""
    found = aggregate([order("a", 2, 0, (1, 3))], 4)
    assert found.scores is not None
    assert (found.agreement, found.needs_another_rater, found.reason) == (None, False, None)
    assert found.scores[2] > found.scores[0] > found.scores[1] == found.scores[3]  # type: ignore[operator]


def test_one_image_has_nothing_to_be_compared_with() -> None:
    """It has score 0 once somebody placed it, and none where nobody did or it is not usable."""
    assert aggregate([order("a", 0)], 1).scores == (0.0,)
    assert aggregate([Answer("a")], 1).code == "no_answers"
    assert aggregate(NONE_USABLE[:1], 1).code == "none_usable"
    with pytest.raises(ValueError, match="images: a task has at least one"):
        aggregate([], 0)


@pytest.mark.parametrize("unclear", EVERY)
def test_ties_alone_are_no_order_and_nobody_else_is_asked(unclear: Unclear) -> None:
    """Null with a reason, whatever may still come."""
    found = aggregate([order("a", (0, 1, 2)), Answer("b", ((), (0, 1, 2)))], 3, unclear=unclear)
    assert (found.scores, found.code, found.needs_another_rater, found.agreement) == (None, "all_tied", False, None)


@pytest.mark.parametrize("unclear", EVERY)
@pytest.mark.parametrize("others", [0, 1])
def test_most_raters_find_none_usable(unclear: Unclear, others: int) -> None:
    """More than half of the weight: null with a reason, and that is settled."""
    found = aggregate([*NONE_USABLE, *[order("a", 0, 1)] * others], 2, unclear=unclear)
    assert (found.scores, found.code, found.needs_another_rater) == (None, "none_usable", False)


def test_half_find_none_usable() -> None:
    """Another rater decides; where none comes, whoever saw an order counts."""
    answers = [order("a", 0, 1), NONE_USABLE[0]]
    found = aggregate(answers, 2)
    assert (found.scores, found.code, found.needs_another_rater) == (None, "none_usable", True)
    for unclear in LAST:
        assert aggregate(answers, 2, unclear=unclear).scores == aggregate(answers[:1], 2).scores
    assert aggregate([*answers, order("b", 0, 1)], 2).scores is not None


def test_weights_decide_whether_none_is_usable() -> None:
    """Two raters of weight 0.25 do not outvote one of weight 1."""
    answers = [order("a", 0, 1), *NONE_USABLE[:2]]
    assert aggregate(answers, 2).code == "none_usable"
    assert aggregate(answers, 2, {"none 0": 0.25, "none 1": 0.25}).scores is not None


def test_an_image_that_nobody_compared() -> None:
    """Another rater is asked; then null, or scores of the others."""
    answers = [order("a", 2, 0)]
    assert aggregate(answers, 3).needs_another_rater
    assert aggregate(answers, 3, unclear="drop").scores is None
    partial = aggregate(answers, 3, unclear="partial")
    alone = aggregate([order("a", 1, 0)], 2).scores
    assert alone is not None
    assert partial.scores == (alone[0], None, alone[1])
    assert partial.code == "not_compared"
    assert aggregate([*answers, order("b", 2, 0, 1)], 3).scores is not None


@pytest.mark.parametrize(
    ("more", "scored"),
    [
        ([], None),  # two pieces alike
        ([order("c", 2, 3)], {2, 3}),  # compared more often
        ([order("c", 0, 1), order("d", 3, 4)], {2, 3, 4}),  # more images
        ([order("c", 1, 2), order("d", 3, 4)], {0, 1, 2, 3, 4}),  # joined
    ],
)
def test_a_task_in_pieces(more: list[Answer], scored: set[int] | None) -> None:
    """Pieces without a comparison between them have no common scale: the larger one is scored, of two alike none."""
    answers = [order("a", 0, 1), order("b", 2, 3), *more]
    assert aggregate(answers, 5).needs_another_rater == (scored is None or len(scored) < 5)
    found = aggregate(answers, 5, unclear="partial").scores
    assert (found is None) == (scored is None)
    if found is not None:
        assert {image for image, score in enumerate(found) if score is not None} == scored


@pytest.mark.parametrize(
    ("second", "agree"),
    [((0, 1, 2, 3), True), ((3, 2, 1, 0), False), ((1, 0, 3, 2), True), ((2, 0, 3, 1), False)],
)
def test_raters_who_disagree(second: tuple[int, ...], agree: bool) -> None:
    """Mean τ-b under 0.2 (here 1, −1, 1/3, 0): another rater, then null."""
    answers = [order("a", 0, 1, 2, 3), order("b", *second)]
    found = aggregate(answers, 4)
    assert (found.scores is not None) == agree
    assert found.needs_another_rater == (not agree)
    for unclear in LAST:
        last = aggregate(answers, 4, unclear=unclear)
        assert (last.scores is not None, last.code) == ((True, None) if agree else (False, "disagreement"))
        assert not last.needs_another_rater


def test_answers_on_parts_that_cancel_out() -> None:
    """A circle over three subsets has no agreement to measure, equal scores, and so no order."""
    circle = [order("a", 0, 1), order("b", 1, 2), order("c", 2, 0)]
    found = aggregate(circle, 3)
    assert (found.scores, found.code, found.needs_another_rater, found.agreement) == (None, "no_order", True, None)
    assert not aggregate(circle, 3, unclear="drop").needs_another_rater


@pytest.mark.parametrize(("images", "shown"), [(7, 4), (12, 4), (24, 6), (64, 6)])
@pytest.mark.parametrize("raters", [1, 2])
def test_answers_on_overlapping_subsets_give_one_order(images: int, shown: int, raters: int) -> None:
    """Whoever ranks every subset by the true order has it back within each, and all images are scored."""
    truth = np.random.default_rng(0).permutation(images)
    sorted_subsets = [sorted(each, key=lambda image: truth[image]) for each in subsets(images, shown)]
    answers = [order(f"r{rater}", *each) for rater in range(raters) for each in sorted_subsets]
    found = aggregate(answers, images)
    assert found.scores is not None
    assert raters == 1 or found.agreement == 1
    for each in sorted_subsets:
        scores = [found.scores[image] for image in each]
        assert scores == sorted(scores, reverse=True)  # type: ignore[type-var]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e6])
def test_the_fit_is_stationary_at_every_scale_of_weights(scale: float) -> None:
    """The gradient vanishes, also where scores are far apart and the loss is flat."""
    wins = scale * count_wins([order("a", *range(12)), order("b", 1, 0, *range(2, 12))], 12)
    s = fit_scores(wins)
    pull = wins / (1 + np.exp(s[:, None] - s))
    gradient = pull.sum(0) - pull.sum(1) + 0.2 * s
    assert np.abs(gradient).max() <= 1e-5 * max(1.0, scale)


def test_nobody_answered() -> None:
    """Null, and somebody is asked while somebody may come; an answer that left all unranked is no other case."""
    for answers in ([], [Answer("a")]):
        assert aggregate(answers, 3).needs_another_rater
        last = aggregate(answers, 3, unclear="partial")
        assert (last.scores, last.code, last.needs_another_rater) == (None, "no_answers", False)
