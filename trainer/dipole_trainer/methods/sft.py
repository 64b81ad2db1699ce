"""Best-of-K: every sample is regressed to the group's best. METHOD: baselines on the same loop."""

from __future__ import annotations

from dipole_trainer.methods.base import MethodLoss, RankedSamples
from dipole_trainer.spec import SftSpec


def sft_loss(group: RankedSamples, spec: SftSpec) -> MethodLoss:
    """Mean squared latent distance to the best."""
    return MethodLoss((group.x - group.ranked_latents[group.positives[0]]).square().mean())
