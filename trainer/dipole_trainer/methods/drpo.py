"""Drifting Preference Optimization: the best attract, the worst repel, the frozen base anchors, all in φ.

The loss is `drift(x; x⁺, x⁻) + λ_ref · drift(x; x_ref, sg(x))`, averaged over the keys of φ (METHOD: one update).
Features of positives and negatives are rows of the ranked samples' features: gathered, never encoded again. With
`feature_top_fraction` below 1, x and x_ref are those of the best candidates alone.

Legend: K samples, R ranked samples, T tokens, D features, P positives, N negatives.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dipole_trainer.compute.transfers import to_device
from dipole_trainer.methods.base import MethodLoss, RankedSamples
from dipole_trainer.methods.drift import drift_loss
from dipole_trainer.spec import DrpoSpec


def drpo_loss(group: RankedSamples, spec: DrpoSpec) -> MethodLoss:
    """Mean over keys; `drift_pref` and `drift_ref` are the two drifts."""
    preference, reference = [], []
    device = group.x.device
    moved = None if group.moved is None else to_device(group.moved, device)
    sides = [to_device(rows, device) for rows in (group.positives, group.negatives)]
    places: list[Tensor | None] = [None, None]  # of the anchors among x, where they are to be kept from themselves
    if spec.mask_self and group.ranks_itself:
        places = [to_device(_find_places(rows, group.moved), device) for rows in (group.positives, group.negatives)]
    for key, phi in group.phi.items():
        value, base = phi, group.phi_ref.get(key)
        if moved is not None:
            value, base = value[moved], None if base is None else base[moved]
        tokens = value.shape[1]
        x, ranked = _flatten_tokens(value), _flatten_tokens(group.phi_ranked[key])  # (1, K·T, D), (1, R·T, D)
        best, worst = (_token_rows(rows, tokens) for rows in sides)
        anchors = [None if rows is None else _token_rows(rows, tokens)[None] for rows in places]
        preference.append(
            drift_loss(
                x, ranked[:, best], ranked[:, worst],
                positive_weight=spec.positive_weight, negative_weight=spec.negative_weight,
                radii=spec.radii, kernel=spec.kernel,
                positive_rows=anchors[0], negative_rows=anchors[1],
            ).loss.mean()
        )  # fmt: skip
        if spec.ref_lambda:
            assert base is not None, "the loop draws the base's samples for a method that pulls to them"
            reference.append(
                drift_loss(
                    x, _flatten_tokens(base), x.detach(),
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


def _token_rows(samples: Tensor, tokens: int) -> Tensor:
    """Rows of a flattened (samples·T) set that belong to the given samples; -1 for those of one below 0."""
    rows = samples[:, None] * tokens + torch.arange(tokens, device=samples.device)
    return torch.where(samples[:, None] < 0, -1, rows).flatten()


def _find_places(rows: Sequence[int], moved: Sequence[int] | None) -> Sequence[int]:
    """Which sample of x each ranked one is; -1 where it is none."""
    if moved is None:
        return rows
    places = {row: place for place, row in enumerate(moved)}
    return [places.get(row, -1) for row in rows]
