"""Best-of-K: every sample is regressed to the group's best. METHOD: baselines on the same loop."""

from __future__ import annotations

from dipole_trainer.methods.base import Loss, RankedSamples
from dipole_trainer.spec import SftSpec


def loss(group: RankedSamples, spec: SftSpec) -> Loss:
    """Mean squared latent distance to the best."""
    return Loss((group.x - group.ranked[group.positives[0]]).square().mean())
