"""Direct preference optimisation for one step: nearer to the best and farther from the worst than the base is.

`−log σ(β[(s⁺ − s⁻)_θ − (s⁺ − s⁻)_ref])`, where the score s of a set is minus its mean squared latent distance to the
positives (s⁺) or negatives (s⁻). METHOD: baselines on the same loop.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from dipole_trainer.methods.base import MethodLoss, RankedSamples, squared_distances
from dipole_trainer.spec import DpoSpec


def dpo_loss(group: RankedSamples, spec: DpoSpec) -> MethodLoss:
    """`margin` is what the logarithm is taken of, before σ: above 0 the model prefers as the ranking does."""
    assert group.x_ref is not None
    margin = spec.beta * (_preference_margin(group, group.x) - _preference_margin(group, group.x_ref))
    return MethodLoss(-logsigmoid(margin), {"margin": margin})


def _preference_margin(group: RankedSamples, x: Tensor) -> Tensor:
    """s⁺ − s⁻ of x (K, c, h, w), ()."""
    best, worst = group.ranked_latents[list(group.positives)], group.ranked_latents[list(group.negatives)]
    return squared_distances(x, worst).mean() - squared_distances(x, best).mean()
