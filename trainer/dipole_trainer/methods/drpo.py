"""Drifting Preference Optimization for one group: φ features and an order in, goals and a loss out.

The loss is `drift(x; x⁺, x⁻) + λ_ref · drift(x; x_ref, sg(x))`, averaged over the keys of φ (METHOD: one update). The
exact fast form computes the goals without any graph, from features that were gathered rather than encoded again, and
then needs one graph per chunk of samples: given goals, the loss is a sum over samples.

Legend: K candidates, T tokens, D features, P positives, N negatives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dipole_trainer.drift import Drift, drift_loss
from dipole_trainer.selection import Selection
from dipole_trainer.spec import DrpoSpec

PhiSets = Mapping[str, Tensor]  # {key: (K, T, D)}


@dataclass(frozen=True)
class Goals:
    """Where each sample of a group should move, per key; `preference` and `reference` are the two drifts."""

    preference: Mapping[str, Drift]
    reference: Mapping[str, Drift]
    ref_lambda: float
    tokens: Mapping[str, int]  # T of each key

    def loss(self, phi: PhiSets, rows: slice) -> Tensor:
        """The part of the loss that samples `rows` carry, from their features {key: (len(rows), T, D)}."""
        total = torch.zeros(())
        for key, value in phi.items():
            flat = value.flatten(0, 1)[None]  # (1, len(rows)·T, D)
            tokens = slice(rows.start * self.tokens[key], rows.stop * self.tokens[key])
            total = total + _share(self.preference[key], flat, tokens)
            if self.ref_lambda:
                total = total + self.ref_lambda * _share(self.reference[key], flat, tokens)
        return total / len(phi)

    def gradient(
        self,
        phi_of: Callable[[slice], PhiSets],
        parameters: Sequence[Tensor],
        chunks: Sequence[slice],
        *,
        scale: float = 1.0,
    ) -> list[Tensor]:
        """The loss's gradient times `scale`, one tensor a parameter, with the graph of one chunk at a time.

        `phi_of(rows)` runs generator and φ on those samples with a graph; `chunks` cover the group.
        """
        total: list[Tensor] | None = None
        for rows in chunks:
            part = torch.autograd.grad(self.loss(phi_of(rows), rows) * scale, list(parameters))
            total = list(part) if total is None else [a + b for a, b in zip(total, part, strict=True)]
        assert total is not None, "a group has samples"
        return total

    def values(self) -> tuple[float, float]:
        """The two drift losses, each averaged over keys."""
        return _mean(self.preference.values()), _mean(self.reference.values())


def goals(phi: PhiSets, phi_ref: PhiSets, chosen: Selection, spec: DrpoSpec) -> Goals:
    """Goals of one group from the detached features of its samples and of the base's on the same noises."""
    preference, reference = {}, {}
    for key, value in phi.items():
        tokens = value.shape[1]
        x = value.flatten(0, 1)[None]  # (1, K·T, D)
        best, worst = (_token_rows(rows, tokens, x.device) for rows in (chosen.positives, chosen.negatives))
        preference[key] = drift_loss(
            x, x[:, best], x[:, worst],
            positive_weight=spec.positive_weight, negative_weight=spec.negative_weight,
            radii=spec.radii, kernel=spec.kernel,
            positive_rows=best[None] if spec.mask_self else None,
            negative_rows=worst[None] if spec.mask_self else None,
        )  # fmt: skip
        if spec.ref_lambda:
            reference[key] = drift_loss(
                x, phi_ref[key].flatten(0, 1)[None], x,
                positive_weight=spec.ref_positive_weight, negative_weight=spec.ref_negative_weight,
                radii=spec.radii, kernel=spec.kernel, mask_negative_self=True,
            )  # fmt: skip
    return Goals(preference, reference, spec.ref_lambda, {key: value.shape[1] for key, value in phi.items()})


def _token_rows(samples: Sequence[int], tokens: int, device: torch.device) -> Tensor:
    """Rows of a flattened (K·T) set that belong to the given samples."""
    rows = torch.as_tensor(samples, device=device)
    return (rows[:, None] * tokens + torch.arange(tokens, device=device)).flatten()


def _share(drift: Drift, flat: Tensor, tokens: slice) -> Tensor:
    goal = drift.goal[:, tokens]
    return (flat / drift.scale - goal).square().sum() / drift.goal[0].numel()


def _mean(drifts: Iterable[Drift]) -> float:
    values = [drift.loss.mean().item() for drift in drifts]
    return sum(values) / len(values) if values else 0.0
