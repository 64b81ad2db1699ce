"""Drifting Preference Optimization: the best attract, the worst repel, the frozen base anchors, all in φ.

The loss is `drift(x; x⁺, x⁻) + λ_ref · drift(x; x_ref, sg(x))`, averaged over the keys of φ (METHOD: one update).
Features of positives and negatives are rows of the ranked samples' features: gathered, never encoded again.

Legend: K samples, R ranked samples, T tokens, D features, P positives, N negatives.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dipole_trainer.methods.base import MethodLoss, RankedSamples
from dipole_trainer.methods.drift import drift_loss
from dipole_trainer.spec import DrpoSpec


def drpo_loss(group: RankedSamples, spec: DrpoSpec) -> MethodLoss:
    """Mean over keys; `drift_pref` and `drift_ref` are the two drifts."""
    preference, reference = [], []
    for key, value in group.phi.items():
        tokens = value.shape[1]
        x, ranked = _flatten_tokens(value), _flatten_tokens(group.phi_ranked[key])  # (1, K·T, D), (1, R·T, D)
        best, worst = (_token_rows(rows, tokens, x.device) for rows in (group.positives, group.negatives))
        own = spec.mask_self and group.ranks_itself
        preference.append(
            drift_loss(
                x, ranked[:, best], ranked[:, worst],
                positive_weight=spec.positive_weight, negative_weight=spec.negative_weight,
                radii=spec.radii, kernel=spec.kernel,
                positive_rows=best[None] if own else None, negative_rows=worst[None] if own else None,
            ).loss.mean()
        )  # fmt: skip
        if spec.ref_lambda:
            reference.append(
                drift_loss(
                    x, _flatten_tokens(group.phi_ref[key]), x.detach(),
                    positive_weight=spec.ref_positive_weight, negative_weight=spec.ref_negative_weight,
                    radii=spec.radii, kernel=spec.kernel, mask_negative_self=True,
                ).loss.mean()
            )  # fmt: skip
    total = torch.stack(preference).mean()
    parts = {"drift_pref": total}
    if reference:
        pull = torch.stack(reference).mean()
        parts["drift_ref"] = pull
        total = total + spec.ref_lambda * pull
    return MethodLoss(total, parts)


def _flatten_tokens(phi: Tensor) -> Tensor:
    """(samples, T, D) as one set of vectors, (1, samples·T, D)."""
    return phi.flatten(0, 1)[None]


def _token_rows(samples: Sequence[int], tokens: int, device: torch.device) -> Tensor:
    """Rows of a flattened (samples·T) set that belong to the given samples."""
    rows = torch.as_tensor(samples, device=device)
    return (rows[:, None] * tokens + torch.arange(tokens, device=device)).flatten()
