"""`feature_top_fraction` of DrPO: the best alone are moved, as an independent computation in float64 says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from dipole_trainer.methods.base import RankedSamples
from dipole_trainer.methods.drpo import drpo_loss
from dipole_trainer.ranking.selection import select_share
from dipole_trainer.spec import DrpoSpec, TrainSpec
from dipole_trainer.training.chunked_gradient import output_gradients

Floats = NDArray[np.float64]
K, T, D = 8, 3, 5
SPEC = DrpoSpec(
    positives=2, negatives=2, radii=[0.2, 0.7], positive_weight=7.0, negative_weight=3.0, ref_positive_weight=5.0,
    ref_negative_weight=2.0, ref_lambda=0.4, feature_top_fraction=0.5,
)  # fmt: skip


def drift(
    x: Floats, positive: Floats, negative: Floats, weights: tuple[float, float], own: dict[int, list[int]]
) -> tuple[float, Floats]:
    """(loss, gradient in x), written from METHOD's formulas: x (N, D), anchors (P, D) and (M, D), and by row of x the
    negatives' and positives' places, after those of x, that are its copies.
    """
    n, d = x.shape
    t = np.concatenate([x, negative, positive])
    w = np.array([1.0] * n + [weights[1]] * len(negative) + [weights[0]] * len(positive))
    distance = np.sqrt(np.maximum(((x[:, None] - t[None]) ** 2).sum(-1), 1e-8))
    scale = max((distance * w).mean() / w.mean(), 1e-3)
    unit = max(scale / d**0.5, 1e-3)
    total = np.zeros_like(x)
    for radius in SPEC.radii:
        logits = -distance / (scale * radius)
        for i in range(n):
            logits[i, [i, *own.get(i, [])]] -= 100 / radius
        rows, columns = (np.exp(logits - logits.max(axis, keepdims=True)) for axis in (1, 0))
        both = rows / rows.sum(1, keepdims=True) * columns / columns.sum(0, keepdims=True)
        affinity = np.sqrt(np.maximum(both, 1e-6)) * w
        first = n + len(negative)
        push, pull = affinity[:, :first], affinity[:, first:]
        c = np.concatenate([-push * pull.sum(1, keepdims=True), pull * push.sum(1, keepdims=True)], 1)
        field = (c[..., None] * (t[None] - x[:, None]) / unit).sum(1)
        total += field / np.sqrt(max((field**2).mean(), 1e-8))
    return float((total**2).mean()), -2 * total / unit / total.size


@pytest.mark.parametrize("mask_self", [False, True])
def test_the_best_half_moves_and_the_rest_are_anchors(mask_self: bool) -> None:
    """Loss and gradient are those of the four best scored; a candidate without a score is none of them."""
    rng = np.random.default_rng(0)
    phi, base = rng.normal(size=(2, K, T, D))
    total = np.array([0.3, 2.0, -1.0, np.nan, 1.0, 0.7, -2.0, 0.1])
    positives, negatives = (1, 4), (6, 2)
    moved = select_share(total, 0.5)
    assert moved == (0, 1, 4, 5)
    group = RankedSamples(
        x=torch.zeros(K, 1, 1, 1), phi={"key": torch.tensor(phi)}, x_ref=None, phi_ref={"key": torch.tensor(base)},
        ranked_latents=torch.zeros(K, 1, 1, 1), phi_ranked={"key": torch.tensor(phi)}, scores=torch.tensor(total),
        positives=positives, negatives=negatives, ranks_itself=True, moved=moved,
    )  # fmt: skip
    spec = SPEC.model_copy(update={"mask_self": mask_self})
    loss, found = output_gradients(lambda samples: drpo_loss(samples, spec), group)

    x = phi[list(moved)].reshape(-1, D)
    best, worst = (phi[list(rows)].reshape(-1, D) for rows in (positives, negatives))
    n, copies = len(x), dict[int, list[int]]()
    for place, row in enumerate(moved):
        if mask_self and row in positives:
            for token in range(T):
                copies[place * T + token] = [n + len(worst) + positives.index(row) * T + token]
    preferred, wanted = drift(x, best, worst, (7.0, 3.0), copies)
    own = {i: [n + i] for i in range(n)}
    pulled, back = drift(x, base[list(moved)].reshape(-1, D), x, (5.0, 2.0), own)
    assert float(loss.total) == pytest.approx(preferred + 0.4 * pulled, rel=1e-9)
    expected = np.zeros((K, T, D))
    expected[list(moved)] = (wanted + 0.4 * back).reshape(-1, T, D)
    assert found.phi["key"].numpy() == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert found.find_nonzero_rows()[0] == list(moved)


def test_a_share_is_rounded_up_and_all_is_everybody() -> None:
    """Of those with a score; of equal ones the first."""
    total = np.array([1.0, 1.0, np.nan, 1.0, 0.0])
    assert select_share(total, 1.0) is None
    assert select_share(total, 0.5) == (0, 1)
    assert select_share(total, 0.01) == (0,)


def test_pairs_have_no_best_half() -> None:
    with pytest.raises(ValidationError, match="feature_top_fraction"):
        TrainSpec.model_validate({"pairs_file": "file-1", "method": {"drpo": {"feature_top_fraction": 0.5}}})
