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

from dipole.errors import NotFinite
from dipole_trainer.compute.micro_batches import MicroBatches
from dipole_trainer.compute.transfers import take_rows
from dipole_trainer.methods.base import FeatureSets, MethodLoss, RankedSamples

LOSS_SCALE_TRIES = 4


@dataclass(frozen=True)
class OutputGradients:
    """The loss's gradient in x (K, c, h, w) and in φ {key: (K, T, D)}; None and empty where the loss has none."""

    x: Tensor | None
    phi: Mapping[str, Tensor]

    def find_nonzero_rows(self) -> tuple[list[int], float]:
        """Samples that have any gradient, and the largest of all magnitudes; waits for the device once.

        Raises NotFinite when one is not finite.
        """
        parts = [each.flatten(1).abs().amax(1).double() for each in (self.x, *self.phi.values()) if each is not None]
        if not parts:
            return [], 0.0
        largest = torch.stack(parts).amax(0).tolist()
        if not all(map(math.isfinite, largest)):
            raise NotFinite("the loss has a gradient that is not finite: lower optimizer.lr, or use bf16 or fp32")
        return [row for row, value in enumerate(largest) if value], max(largest)


class LossScale:
    """How large cotangents may be on their way back through float16: 1, or less since they overflowed."""

    def __init__(self) -> None:
        self.value = 1.0

    def halve_after_overflow(self) -> None:
        self.value /= 2**8

    def grow_after_success(self) -> None:
        self.value = min(1.0, 2 * self.value)


def output_gradients(
    loss: Callable[[RankedSamples], MethodLoss], group: RankedSamples
) -> tuple[MethodLoss, OutputGradients]:
    """Evaluate the loss on leaves in place of x and φ, and differentiate it there."""
    x = group.x.detach().requires_grad_()
    phi = {key: value.detach().requires_grad_() for key, value in group.phi.items()}
    found = loss(replace(group, x=x, phi=phi))
    wanted = [x, *phi.values()]
    in_x, *in_phi = torch.autograd.grad(found.total, wanted, allow_unused=True)
    by_key = {key: value for key, value in zip(phi, in_phi, strict=True) if value is not None}
    return replace(found, total=found.total.detach()), OutputGradients(in_x, by_key)


def parameter_gradient(
    outputs: OutputGradients,
    sample: Callable[[list[int]], tuple[Tensor, FeatureSets]],
    parameters: Sequence[Tensor],
    micro_batches: MicroBatches,
    *,
    scale: float = 1.0,
    half: LossScale | None = None,
    count: int | None = None,
) -> list[Tensor] | None:
    """The loss's gradient times `scale`, one tensor a parameter; None when no sample has any.

    With `count` all of so many samples are known to have one, and the device is not waited for to find out: the host
    goes on to queue their graphs while the loss is computed. Whether it is finite then shows in the weights' gradient.

    `sample(rows)` runs G (and φ, if the loss has a gradient there) on those samples with a graph. `half` is given where
    they run in float16: cotangents are then scaled by a power of two on their way back, so that the largest is near its
    headroom, and by less when that overflows. Raises NotFinite when the loss's gradient is not finite, or in
    float16 the weights'.
    """
    if half is None and count is not None:
        rows, largest = list(range(count)), 0.0
    else:
        rows, largest = outputs.find_nonzero_rows()
    if not rows:
        return None
    if half is None:
        return [each.mul_(scale) for each in _backward(outputs, rows, sample, parameters, micro_batches, 1.0)]
    for _ in range(LOSS_SCALE_TRIES):
        up = half.value * 2.0 ** -math.ceil(math.log2(largest))
        total = _backward(outputs, rows, sample, parameters, micro_batches, up)
        if all(bool(each.isfinite().all()) for each in total):
            half.grow_after_success()
            return [each.mul_(scale / up) for each in total]
        half.halve_after_overflow()
    raise NotFinite("the gradient is not finite in fp16: use bf16 or fp32, or lower optimizer.lr")


def _backward(
    outputs: OutputGradients,
    rows: Sequence[int],
    sample: Callable[[list[int]], tuple[Tensor, FeatureSets]],
    parameters: Sequence[Tensor],
    micro_batches: MicroBatches,
    loss_scale: float,
) -> list[Tensor]:
    """The cotangents times `loss_scale`, carried back to the parameters."""
    total: list[Tensor] = []

    def add_micro_batch(piece: list[int]) -> None:
        x, phi = sample(piece)
        values = ([x] if outputs.x is not None else []) + [phi[key] for key in outputs.phi]
        cotangents = [each for each in (outputs.x, *outputs.phi.values()) if each is not None]
        weights = [take_rows(each, piece) * loss_scale for each in cotangents]
        part = torch.autograd.grad(values, list(parameters), weights)
        total[:] = [a.add_(b) for a, b in zip(total, part, strict=True)] if total else part

    micro_batches.map(rows, add_micro_batch)
    return total
