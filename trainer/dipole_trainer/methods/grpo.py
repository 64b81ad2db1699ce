"""Neighbor GRPO for one step: a group is a neighbourhood of noises, and choosing a neighbour is the policy's action.

Candidates come from noises around a common one, so that their samples are near each other. For an anchor, one of them,
the policy is a softmax of minus the latent distance to it: π(i) ∝ exp(−‖x_i − x_anchor‖²/T). Raising a good
candidate's probability moves the anchor's sample towards it. PPO's clipped ratio, advantages scaled by a quasi-norm.
METHOD: baselines.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dipole_trainer.methods.base import DrawNoise, MethodLoss, RankedSamples, scored_rows, squared_distances
from dipole_trainer.spec import GrpoSpec

MAX_LOG_RATIO = 10.0  # beyond it exp() says nothing that the clip does not


def neighbour_noises(noise: Tensor, draw: DrawNoise, spec: GrpoSpec) -> Tensor:
    """Noises (K, c, h, w) around a common one: `sqrt(1 − σ²)·z + σ·δ`, each of unit variance."""
    common: Tensor = (1 - spec.sigma**2) ** 0.5 * draw("centre")[:1]
    return common + spec.sigma * noise


def grpo_loss(group: RankedSamples, spec: GrpoSpec) -> MethodLoss:
    """`ratio` is the mean ratio to the policy that drew the group; 1 while rankings are fresh."""
    rows = scored_rows(group)
    anchors = rows[: spec.anchors]
    # (scored, anchors)
    now = _log_softmax_policy(group.ranked_latents[rows], group.x[anchors], spec.temperature)
    then = _log_softmax_policy(group.ranked_latents[rows], group.ranked_latents[anchors], spec.temperature)
    ratio = (now - then).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    advantage = quasi_norm_advantages(group.scores[rows], spec)[:, None]
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - spec.clip, 1 + spec.clip) * advantage)
    return MethodLoss(-gain.mean(), {"ratio": ratio.mean()})


def quasi_norm_advantages(scores: Tensor, spec: GrpoSpec) -> Tensor:
    """Centred scores (n,) over their quasi-norm `(Σ|s|^p)^(1/p) / √n`, clipped."""
    centred = scores - scores.mean()
    norm = centred.abs().pow(spec.norm_p).sum().pow(1 / spec.norm_p) / len(scores) ** 0.5
    scaled: Tensor = centred / norm.clamp_min(1e-6)
    return scaled.clamp(-spec.advantage_clip, spec.advantage_clip)


def _log_softmax_policy(candidates: Tensor, anchors: Tensor, temperature: float) -> Tensor:
    """log π of each candidate for each anchor, (candidates, anchors)."""
    return torch.log_softmax(-squared_distances(candidates, anchors) / temperature, dim=0)
