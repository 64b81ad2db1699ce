"""The exact fast update: a group's gradient with the graph of one chunk at a time, whatever the method.

The loss is a function of x and φ(x) alone, and what they are is known before any graph of G exists: the group was
drawn without one. So the loss's gradient in x and φ, the cotangents, is taken first, on K small leaves. Then G and φ
run again chunk by chunk with a graph, and each chunk's part is carried back to the weights:

    ∂loss/∂θ = Σ_k (∂x_k/∂θ)ᵀ ∂loss/∂x_k + (∂φ(x_k)/∂θ)ᵀ ∂loss/∂φ(x_k)

This is the chain rule and no approximation: memory does not grow with K, and samples with no gradient (all but the
anchors, in GRPO) are not drawn again. For DrPO it is METHOD's "no graph until the goal is known".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dipole_trainer.chunks import Chunks
from dipole_trainer.methods.method import Loss, Phi, RankedSamples

HEADROOM_TRIES = 4  # fp16 overflows: each try has 2^8 times less headroom


@dataclass(frozen=True)
class Cotangents:
    """The loss's gradient in x (K, c, h, w) and in φ {key: (K, T, D)}; None and empty where the loss has none."""

    x: Tensor | None
    phi: Mapping[str, Tensor]

    def rows(self) -> list[int]:
        """Samples that have any gradient."""
        parts = [each.flatten(1).ne(0).any(1) for each in (self.x, *self.phi.values()) if each is not None]
        return torch.stack(parts).any(0).nonzero()[:, 0].tolist() if parts else []

    def largest(self) -> float:
        return max((each.abs().max().item() for each in (self.x, *self.phi.values()) if each is not None), default=0.0)


def cotangents(loss: Callable[[RankedSamples], Loss], group: RankedSamples) -> tuple[Loss, Cotangents]:
    """Evaluate the loss on leaves in place of x and φ, and differentiate it there."""
    x = group.x.detach().requires_grad_()
    phi = {key: value.detach().requires_grad_() for key, value in group.phi.items()}
    found = loss(replace(group, x=x, phi=phi))
    wanted = [x, *phi.values()]
    in_x, *in_phi = torch.autograd.grad(found.total, wanted, allow_unused=True)
    by_key = {key: value for key, value in zip(phi, in_phi, strict=True) if value is not None}
    return replace(found, total=found.total.detach()), Cotangents(in_x, by_key)


def gradient(
    found: Cotangents,
    sample: Callable[[list[int]], tuple[Tensor, Phi]],
    parameters: Sequence[Tensor],
    chunks: Chunks,
    *,
    scale: float = 1.0,
    half: bool = False,
) -> list[Tensor] | None:
    """The loss's gradient times `scale`, one tensor a parameter; None when no sample has any.

    `sample(rows)` runs G (and φ, if the loss has a gradient there) on those samples with a graph. `half` says that
    they run in float16: cotangents are then scaled to 1 by a power of two on their way back, and by less when that
    overflows. Raises FloatingPointError when the gradient is not finite in the end.
    """
    rows = found.rows()
    if not rows:
        return None
    headroom = 2.0 ** -math.ceil(math.log2(found.largest())) if half else 1.0
    for _ in range(HEADROOM_TRIES if half else 1):
        total = _carried(found, rows, sample, parameters, chunks, headroom)
        if not half or all(bool(each.isfinite().all()) for each in total):
            return [each.mul_(scale / headroom) for each in total]
        headroom /= 2**8
    raise FloatingPointError("the gradient is not finite in fp16: use bf16 or fp32, or lower the learning rate")


def _carried(
    found: Cotangents,
    rows: Sequence[int],
    sample: Callable[[list[int]], tuple[Tensor, Phi]],
    parameters: Sequence[Tensor],
    chunks: Chunks,
    headroom: float,
) -> list[Tensor]:
    """The cotangents times `headroom`, carried back to the parameters."""
    total: list[Tensor] = []

    def add(piece: list[int]) -> None:
        x, phi = sample(piece)
        outputs = ([x] if found.x is not None else []) + [phi[key] for key in found.phi]
        weights = [each[piece] * headroom for each in (found.x, *found.phi.values()) if each is not None]
        part = torch.autograd.grad(outputs, list(parameters), weights)
        total[:] = [a.add_(b) for a, b in zip(total, part, strict=True)] if total else part

    chunks.over(rows, add)
    return total
