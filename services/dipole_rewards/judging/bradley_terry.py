"""How strong each candidate is, out of who beat whom: Bradley-Terry with ties after Davidson.

R. R. Davidson, "On extending the Bradley-Terry model to accommodate ties in paired comparison experiments", JASA 65,
1970: with strengths π = exp(θ) and a propensity to tie ν = exp(η), i beats j, loses and ties in proportion to π_i :
π_j : ν·sqrt(π_i·π_j), that is, by softmax(d/2, −d/2, η) with d = θ_i − θ_j.

θ and η are normal around 0 a priori: whoever was never beaten stays finite, and whoever was hardly compared stays
near 0. The negative logarithm of the posterior is strictly convex, so that there is one answer, and it sums to 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

PRIOR_SD = 3.0
ROUNDED_DIGITS = 6  # of what the solver finds; candidates with equal records are equal

Matrix = NDArray[np.float64]


def fit_strengths(wins: Matrix, ties: Matrix, *, prior_sd: float = PRIOR_SD) -> NDArray[np.float64]:
    """θ (K,) of K candidates. wins (K, K): how often the row beat the column; ties (K, K): each tie in both halves."""
    count = len(wins)
    i, j = np.triu_indices(count, 1)
    seen = np.stack([wins[i, j], wins[j, i], ties[i, j]])  # (3, pairs): won, lost, tied, from i's side
    games = seen.sum(0)

    def negative_log_posterior(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        half = (x[i] - x[j]) / 2
        logits = np.stack([half, -half, np.full_like(half, x[-1])])
        excess = games * softmax(logits, axis=0) - seen  # (3, pairs): expected less observed
        gradient = x / prior_sd**2
        np.add.at(gradient, i, (excess[0] - excess[1]) / 2)
        np.add.at(gradient, j, (excess[1] - excess[0]) / 2)
        gradient[-1] += excess[2].sum()
        value = (games * logsumexp(logits, axis=0) - (seen * logits).sum(0)).sum() + (x**2).sum() / (2 * prior_sd**2)
        return float(value), gradient

    found = minimize(negative_log_posterior, np.zeros(count + 1), jac=True, method="BFGS", options={"gtol": 1e-8})
    theta: NDArray[np.float64] = np.round(found.x[:-1], ROUNDED_DIGITS) + 0.0  # no -0.0
    return theta
