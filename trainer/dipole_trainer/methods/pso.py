"""Pairwise sample optimisation for one step: a Gaussian policy around the generator's output, trained on pairs.

What is ranked is `y = x + std·ε`. With `log π(y) = −‖y − x‖²/(2·std²)`, a mean over the latent's numbers, the loss of
a pair is `−log σ(β[log r(y_win) − log r(y_lose)])`, where r is the ratio to the reference's policy, clipped. METHOD:
baselines.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dipole_trainer.methods.base import DrawNoise, MethodLoss, RankedSamples, scored_rows
from dipole_trainer.spec import PsoSpec


def explore_gaussian(x: Tensor, draw: DrawNoise, spec: PsoSpec) -> Tensor:
    """Actions around x, (K, c, h, w)."""
    return x + spec.std * draw("explore")


def pso_loss(group: RankedSamples, spec: PsoSpec) -> MethodLoss:
    """Pairs are the scored candidates two by two, as they were drawn; pairs with equal scores are left out."""
    assert group.x_ref is not None
    rows = scored_rows(group)
    first, second = rows[0 : len(rows) // 2 * 2 : 2], rows[1::2]
    better = torch.sign(group.scores[first] - group.scores[second])  # 1, −1, or 0 for a tie
    ratio = (
        _log_gaussian_policy(group.ranked_latents, group.x, spec.std)
        - _log_gaussian_policy(group.ranked_latents, group.x_ref, spec.std)
    ).exp()
    log_ratio = ratio.clamp(1 - spec.clip, 1 + spec.clip).log()  # (K,)
    margin = spec.beta * (log_ratio[first] - log_ratio[second]) * better
    told = better != 0
    return MethodLoss(-logsigmoid(margin[told]).sum() / told.sum().clamp_min(1), {"margin": margin.mean()})


def _log_gaussian_policy(action: Tensor, x: Tensor, std: float) -> Tensor:
    """Up to a constant, (K,)."""
    return -(action - x).square().flatten(1).mean(1) / (2 * std**2)
