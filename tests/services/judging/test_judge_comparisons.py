"""Bradley-Terry with ties against likelihoods written out in full, and the pairs that a tournament chooses."""

from __future__ import annotations

import itertools
import math
from random import Random

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize

from dipole_rewards.judging.bradley_terry import PRIOR_SD, fit_strengths
from dipole_rewards.judging.tournament import Tournament

Matrix = NDArray[np.float64]
FLAT = 1e4  # a prior this wide leaves maximum likelihood


def played(theta: Matrix, nu: float, games: int, seed: int) -> tuple[Matrix, Matrix]:
    """wins and ties of `games` comparisons of each pair, drawn from Davidson's model in its published form."""
    random, pi = np.random.default_rng(seed), np.exp(theta)
    wins, ties = np.zeros((len(pi), len(pi))), np.zeros((len(pi), len(pi)))
    for i, j in itertools.combinations(range(len(pi)), 2):
        parts = np.array([pi[i], pi[j], nu * math.sqrt(pi[i] * pi[j])])
        won, lost, tied = random.multinomial(games, parts / parts.sum())
        wins[i, j], wins[j, i], ties[i, j], ties[j, i] = won, lost, tied, tied
    return wins, ties


def by_definition(wins: Matrix, ties: Matrix, prior_sd: float) -> Matrix:
    """θ that maximises the posterior, each probability written out, without any gradient of ours."""
    count = len(wins)

    def loss(x: Matrix) -> float:
        pi, nu = np.exp(x[:count]), math.exp(x[count])
        value = float((x**2).sum()) / (2 * prior_sd**2)
        for i, j in itertools.combinations(range(count), 2):
            tie = nu * math.sqrt(pi[i] * pi[j])
            total = pi[i] + pi[j] + tie
            value -= wins[i, j] * math.log(pi[i] / total) + wins[j, i] * math.log(pi[j] / total)
            value -= ties[i, j] * math.log(tie / total)
        return value

    options = {"maxiter": 20_000, "maxfev": 20_000, "xatol": 1e-9, "fatol": 1e-12, "adaptive": True}
    found = minimize(loss, np.zeros(count + 1), method="Powell", options={"xtol": 1e-9, "ftol": 1e-14})
    return np.asarray(minimize(loss, found.x, method="Nelder-Mead", options=options).x[:count])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("prior_sd", [PRIOR_SD, 1.0])
def test_strengths_are_the_likeliest(seed: int, prior_sd: float) -> None:
    """Equal to what a search without gradients finds on the likelihood as it is published."""
    wins, ties = played(np.array([1.0, 0.3, -0.2, -1.1]), 0.8, 6, seed)
    assert fit_strengths(wins, ties, prior_sd=prior_sd) == pytest.approx(by_definition(wins, ties, prior_sd), abs=1e-4)


def test_two_candidates_have_the_ratio_of_their_wins() -> None:
    """Without ties and without a prior, θ_0 − θ_1 = ln(wins / losses)."""
    a, b = fit_strengths(np.array([[0.0, 6], [2, 0]]), np.zeros((2, 2)), prior_sd=FLAT)
    assert a - b == pytest.approx(math.log(3), abs=1e-4)
    assert a + b == pytest.approx(0, abs=1e-5)


def test_strengths_that_made_the_results_are_found() -> None:
    """With a thousand games a pair, the strengths that they were drawn from."""
    theta = np.array([1.5, 0.5, 0.0, -0.5, -1.5])
    assert fit_strengths(*played(theta, 0.5, 1000, 0), prior_sd=FLAT) == pytest.approx(theta, abs=0.12)


@pytest.mark.parametrize("prior_sd", [PRIOR_SD, FLAT])
def test_only_ties_mean_equal_strength(prior_sd: float) -> None:
    """Exactly: a group without spread is seen as one."""
    assert (fit_strengths(np.zeros((5, 5)), 2 - 2 * np.eye(5), prior_sd=prior_sd) == 0).all()


def test_beating_each_other_once_means_equal_strength() -> None:
    """What a judge gives who prefers the first image whichever it is: exactly nothing."""
    assert (fit_strengths(np.ones((6, 6)) - np.eye(6), np.zeros((6, 6))) == 0).all()


def test_who_never_lost_is_best_and_finite() -> None:
    """A clean order of 24 is found again, its ends near, though likelihood alone would send them to infinity."""
    theta = fit_strengths(2.0 * np.triu(np.ones((24, 24)), 1), np.zeros((24, 24)))
    assert (np.diff(theta) < 0).all()
    assert np.abs(theta).max() < 20


def test_the_order_of_candidates_does_not_matter() -> None:
    """Strengths go with their candidates."""
    wins, ties = played(np.array([1.0, 0.3, -0.2, -1.1, 0.4]), 0.8, 2, 5)
    turn = np.random.default_rng(0).permutation(5)
    turned = fit_strengths(wins[np.ix_(turn, turn)], ties[np.ix_(turn, turn)])
    assert turned == pytest.approx(fit_strengths(wins, ties)[turn], abs=2e-6)


# ---- tournament -----------------------------------------------------------------------------------------------------


def tournament(count: int, seed: int = 0) -> tuple[list[list[tuple[int, int]]], Matrix]:
    """The rounds of a tournament in which the lower number always wins, and each candidate's wins over each."""
    games, wins, rounds = Tournament(count, Random(seed)), np.zeros((count, count)), []
    while pairs := games.next_round(list(wins.sum(1))):
        rounds.append(pairs)
        for i, j in pairs:
            wins[i, j] += 2
    return rounds, wins


@pytest.mark.parametrize("count", range(1, 9))
def test_small_groups_meet_all_pairs_at_once(count: int) -> None:
    """K·(K−1)/2 pairs in one round up to K = 8."""
    rounds, _ = tournament(count)
    assert rounds == ([list(itertools.combinations(range(count), 2))] if count > 1 else [])


@pytest.mark.parametrize("count", [9, 10, 15, 16, 24, 64])
def test_large_groups_meet_about_k_log_k_pairs_once(count: int) -> None:
    """No pair twice, nobody twice in a round, everybody in almost every round, at most K·ceil(log2 K) pairs."""
    rounds, _ = tournament(count)
    pairs = [pair for each in rounds for pair in each]
    most = count * math.ceil(math.log2(count))
    assert len(pairs) == len(set(pairs)) <= min(most, count * (count - 1) // 2)
    assert len(pairs) > 0.75 * min(most, count * (count - 1) // 2)
    assert all(i < j for i, j in pairs)
    for each in rounds:
        players = [player for pair in each for player in pair]
        assert len(players) == len(set(players))
    times = np.bincount(np.array(pairs).ravel(), minlength=count)
    assert times.max() - times.min() <= 3


@pytest.mark.parametrize("count", [9, 16, 24, 64])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_tournament_tells_the_best_from_the_worst(count: int, seed: int) -> None:
    """With a sure judge, a third of the pairs orders everybody nearly right, the best and the worst quite right."""
    theta = fit_strengths(tournament(count, seed)[1], np.zeros((count, count)))
    ranks = np.argsort(np.argsort(-theta))
    assert np.corrcoef(ranks, np.arange(count))[0, 1] > 0.97
    assert set(np.argsort(-theta)[: count // 3]) <= set(range(count // 2))
