"""Best-of-K: every sample is regressed to the group's best. METHOD: baselines on the same loop."""

from __future__ import annotations

import torch

from dipole_trainer.methods.base import MethodLoss, RankedSamples, choose_sets
from dipole_trainer.spec import SftSpec


def sft_loss(group: RankedSamples, spec: SftSpec) -> MethodLoss:
    """Mean squared distance to the best, of latents or, averaged over keys, of features."""
    sets, best = choose_sets(group, spec.space), group.positives[0]
    return MethodLoss(torch.stack([(x - sets.ranked[key][best]).square().mean() for key, x in sets.x.items()]).mean())
