"""The drift loss of DrPO: where each sample should move in feature space, and the loss that moves it there.

High-ranked samples attract, low-ranked ones and the batch itself repel; the product of the two forces is the dipole:
either force vanishes when the other side is empty. Source: "Drifting Preference Optimization for One-Step Generative
Models" (arXiv 2606.02521), checked against numbers of its published implementation in
tests/trainer/methods/test_drift.py.

Legend: B prompts, N generated vectors, P positives, M negatives, T = N + M + P targets, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kernel = Literal["laplacian", "rbf", "cosine"]
AnchorWeight = float | Tensor

MIN_SQUARED_DISTANCE = 1e-8
MIN_SCALE = 1e-3
MIN_AFFINITY = 1e-6
MASK_LOGIT = 100.0  # subtracted, over the radius, from the logit of a masked pair


@dataclass(frozen=True)
class DriftResult:
    """What one call found. `loss` (B,) carries the graph of `generated`; the rest is detached.

    Given `scale` and `goal` the loss is a plain sum over generated vectors: `((x / scale - goal) ** 2).mean((1, 2))`.
    So it can be evaluated again in pieces of any size (see methods.drpo).
    """

    loss: Tensor  # (B,)
    goal: Tensor  # (B, N, D), in units of `scale`
    scale: Tensor  # (), per dimension
    feature_scale: Tensor  # (), S: the weighted mean distance


def drift_loss(
    generated: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    positive_weight: AnchorWeight,
    negative_weight: AnchorWeight,
    radii: Sequence[float],
    kernel: Kernel = "laplacian",
    mask_negative_self: bool = False,
    positive_rows: Tensor | None = None,
    negative_rows: Tensor | None = None,
) -> DriftResult:
    """The drift loss of `generated` (B, N, D) to `positive` (B, P, D), away from `negative` (B, M, D) and itself.

    Weights are a number or one per anchor, (P,) or (B, P). `mask_negative_self` (M = N) keeps each vector from its own
    copy among the negatives. `positive_rows` (B, P) and `negative_rows` (B, M) say which generated row each anchor is,
    -1 for none, and keep each vector from itself there too.

    Gradients reach `generated` alone. Everything is computed in float32, or in float64 if that is what comes in.
    Raises ValueError when shapes disagree.
    """
    _check_shapes(generated, positive, negative, radii, kernel, mask_negative_self)
    x = generated if generated.dtype == torch.float64 else generated.float()
    with torch.no_grad():
        fixed = x.detach()
        p, q = positive.to(fixed), negative.to(fixed)
        targets = torch.cat([fixed, q, p], dim=1)  # (B, T, D)
        weights = _target_weights(fixed, q, p, negative_weight, positive_weight)  # (B, T)
        distance = _pairwise_distances(fixed, targets)  # (B, N, T)
        feature_scale = ((distance * weights[:, None]).mean() / weights.mean().clamp_min(1e-8)).clamp_min(MIN_SCALE)
        scale = (feature_scale / fixed.shape[-1] ** 0.5).clamp_min(MIN_SCALE)
        own = _self_pairs(fixed, q, p, mask_negative_self, negative_rows, positive_rows)  # (B or 1, N, T)
        first_positive = targets.shape[1] - p.shape[1]
        drift = torch.zeros_like(fixed)
        for radius in radii:
            logits = _affinity_logits(kernel, fixed, targets, distance / feature_scale, radius) - own * (
                MASK_LOGIT / radius
            )
            field = _dipole_field(logits, weights, fixed / scale, targets / scale, first_positive)
            drift += field / field.square().mean().clamp_min(1e-8).sqrt()
        goal = fixed / scale + drift
    loss = (x / scale - goal).square().mean(dim=(1, 2))
    return DriftResult(loss=loss, goal=goal, scale=scale, feature_scale=feature_scale)


def _dipole_field(logits: Tensor, weights: Tensor, x: Tensor, targets: Tensor, first_positive: int) -> Tensor:
    """The field V_r (B, N, D): each target's pull times the push on the other side."""
    both_ways = torch.softmax(logits, dim=2) * torch.softmax(logits, dim=1)
    affinity = both_ways.clamp_min(MIN_AFFINITY).sqrt() * weights[:, None]  # A (B, N, T)
    push, pull = affinity[..., :first_positive], affinity[..., first_positive:]
    a, b = pull.sum(-1, keepdim=True), push.sum(-1, keepdim=True)  # (B, N, 1)
    coefficient = torch.cat([-push * a, pull * b], dim=-1)  # c (B, N, T)
    return coefficient @ targets - coefficient.sum(-1, keepdim=True) * x


def _pairwise_distances(x: Tensor, targets: Tensor) -> Tensor:
    """(B, N, T). By einsum: a vector's distance to itself is rounding noise, and the published code has the same
    rounding noise.
    """
    squares = [torch.einsum("bnd,bnd->bn", vectors, vectors) for vectors in (x, targets)]
    squared = squares[0][:, :, None] + squares[1][:, None] - 2 * torch.einsum("bnd,btd->bnt", x, targets)
    return squared.clamp_min(MIN_SQUARED_DISTANCE).sqrt()


def _affinity_logits(kernel: Kernel, x: Tensor, targets: Tensor, relative: Tensor, radius: float) -> Tensor:
    """How alike each pair is (B, N, T); `relative` are distances in units of the feature scale."""
    if kernel == "cosine":
        unit = torch.nn.functional.normalize
        return unit(x, dim=-1) @ unit(targets, dim=-1).transpose(1, 2) / radius
    if kernel == "rbf":
        return -0.5 * (relative / radius).square()
    return -relative / radius


def _target_weights(
    x: Tensor, q: Tensor, p: Tensor, negative_weight: AnchorWeight, positive_weight: AnchorWeight
) -> Tensor:
    """One weight a target (B, T): ones for the generated, then the negatives' and the positives'."""
    parts = [x.new_ones(x.shape[:2])]
    for anchors, weight in ((q, negative_weight), (p, positive_weight)):
        if isinstance(weight, Tensor):
            parts.append(weight.to(x).expand(anchors.shape[:2]))
        else:
            parts.append(x.new_full(anchors.shape[:2], weight))
    return torch.cat(parts, dim=1)


def _self_pairs(
    x: Tensor, q: Tensor, p: Tensor, negatives_are_x: bool, q_rows: Tensor | None, p_rows: Tensor | None
) -> Tensor:
    """1 where a target is the generated vector itself or a copy of it, else 0; (B, N, T)."""
    count, rows = x.shape[1], torch.arange(x.shape[1], device=x.device)
    if negatives_are_x:
        q_rows = rows.expand(q.shape[:2])
    own = [rows.expand(x.shape[:2])]
    for anchors, copies in ((q, q_rows), (p, p_rows)):
        own.append(anchors.new_full(anchors.shape[:2], -1, dtype=torch.long) if copies is None else copies)
    return (rows.view(1, count, 1) == torch.cat(own, dim=1)[:, None]).to(x.dtype)


def _check_shapes(x: Tensor, p: Tensor, q: Tensor, radii: Sequence[float], kernel: str, negatives_are_x: bool) -> None:
    for name, anchors in (("positive", p), ("negative", q)):
        if (
            anchors.ndim != 3
            or anchors.shape[0] != x.shape[0]
            or anchors.shape[2] != x.shape[2]
            or not anchors.shape[1]
        ):
            raise ValueError(
                f"{name} must be (B, anchors >= 1, D) with B and D of generated, {tuple(x.shape)}; "
                f"got {tuple(anchors.shape)}"
            )
    if not radii or min(radii) <= 0:
        raise ValueError(f"radii must be one or more numbers above 0; got {tuple(radii)}")
    if kernel not in ("laplacian", "rbf", "cosine"):
        raise ValueError(f"kernel must be laplacian, rbf or cosine; got {kernel!r}")
    if negatives_are_x and q.shape[1] != x.shape[1]:
        raise ValueError(f"mask_negative_self needs as many negatives as generated; got {q.shape[1]} and {x.shape[1]}")
