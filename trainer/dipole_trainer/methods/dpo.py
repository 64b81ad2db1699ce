"""Direct preference optimisation for one step: nearer to the best and farther from the worst than the base is.

`−log σ(β[(s⁺ − s⁻)_θ − (s⁺ − s⁻)_ref])`, where the score s of a set is minus its mean squared distance to the
positives (s⁺) or negatives (s⁻), of latents, or of features where the job says so: their keys are averaged. METHOD:
baselines on the same loop.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dipole_trainer.methods.base import FeatureSets, MethodLoss, RankedSamples, choose_sets, squared_distances
from dipole_trainer.spec import DpoSpec


def dpo_loss(group: RankedSamples, spec: DpoSpec) -> MethodLoss:
    """`margin` is what the logarithm is taken of, before σ: above 0 the model prefers as the ranking does."""
    sets, sides = choose_sets(group, spec.space), (group.positives, group.negatives)
    best, worst = ({key: value[list(rows)] for key, value in sets.ranked.items()} for rows in sides)
    margin = spec.beta * (_preference_margin(sets.x, best, worst) - _preference_margin(sets.x_ref, best, worst))
    return MethodLoss(-logsigmoid(margin), {"margin": margin})


def _preference_margin(x: FeatureSets, best: FeatureSets, worst: FeatureSets) -> Tensor:
    """s⁺ − s⁻ of x {key: (K, …)}, ()."""
    margins = [squared_distances(x[key], worst[key]).mean() - squared_distances(x[key], best[key]).mean() for key in x]
    return torch.stack(margins).mean()
