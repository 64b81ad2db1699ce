"""What methods are made of: a ranked group in, a loss out, and what the loop must provide for it.

Legend: K samples of the current weights, R ranked samples, c, h, w latent size, T tokens, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dipole.errors import NotFinite
from dipole_trainer.spec import CompareIn

FeatureSets = Mapping[str, Tensor]  # {key: (samples, T, D)}
# unit noise (K, c, h, w) for a purpose: a function of job, step and group alone
DrawNoise = Callable[[str], Tensor]


@dataclass(frozen=True)
class RankedSamples:
    """One group, as a method sees it.

    `x` and `phi` are what the current weights make of the group's noises: leaf tensors; the loop backpropagates their
    gradients through the generator (training/chunked_gradient.py). `ranked_latents` are the samples that have an order:
    x itself as a rule, then `ranks_itself` is true. They are others when rankings are stale, replayed, or pairs from a
    file, or when a method explores. All but x and phi is constant."""

    x: Tensor  # (K, c, h, w)
    phi: FeatureSets  # {key: (K, T, D)}; empty unless the settings use features
    x_ref: Tensor | None  # (K, c, h, w): the frozen base's on the same noises; None unless wanted
    phi_ref: FeatureSets
    ranked_latents: Tensor  # (R, c, h, w)
    phi_ranked: FeatureSets  # {key: (R, T, D)}
    scores: Tensor  # (R,): combined, higher is better, NaN where there is none
    positives: tuple[int, ...]  # rows of ranked, best first
    negatives: tuple[int, ...]  # rows of ranked, worst first
    ranks_itself: bool  # row k of ranked is row k of x
    moved: tuple[int, ...] | None = None  # rows of x that are to have a gradient, in order; None: all


@dataclass(frozen=True)
class MethodLoss:
    """`total` () carries the graph to x and phi; `parts` () are figures to report."""

    total: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)

    def read_figures(self) -> dict[str, float]:
        """`loss` and the parts as numbers: the device is waited for once. Raises NotFinite where the loss is not."""
        figures = {"loss": self.total, **self.parts}
        values = torch.stack([each.detach().float() for each in figures.values()]).tolist()
        if not math.isfinite(values[0]):
            raise NotFinite("the loss is not finite: lower optimizer.lr, or use precision bf16 or fp32")
        return dict(zip(figures, values, strict=True))


@dataclass(frozen=True)
class Method:
    """A loss, and what it needs of the loop."""

    loss: Callable[[RankedSamples, Any], MethodLoss]  # the second is the method's own settings, in spec.py
    moves_every_sample: bool = False  # each of a group has a gradient; else some of them are not made again for one
    needs_reference: bool = False  # the frozen base's samples, and φ of them where its settings use features
    # a group's noises (K, …) made from independent ones
    make_noises: Callable[[Tensor, DrawNoise, Any], Tensor] | None = None
    # what is ranked, from x (K, …); None: x itself
    explore_around: Callable[[Tensor, DrawNoise, Any], Tensor] | None = None
    shuffles_scores: bool = False  # scores are permuted among the candidates (control experiment)


@dataclass(frozen=True)
class ComparedSets:
    """What a method measures distances between: the latents as one set, or the keys of φ; {key: (samples, …)}."""

    x: FeatureSets
    x_ref: FeatureSets
    ranked: FeatureSets


def choose_sets(group: RankedSamples, space: CompareIn) -> ComparedSets:
    if space == "features":
        return ComparedSets(group.phi, group.phi_ref, group.phi_ranked)
    x_ref = {} if group.x_ref is None else {"latents": group.x_ref}
    return ComparedSets({"latents": group.x}, x_ref, {"latents": group.ranked_latents})


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared distance of every pair of samples, (len(x), len(y))."""
    return torch.stack([(x - each).square().flatten(1).mean(1) for each in y], dim=1)


def scored_rows(group: RankedSamples) -> Tensor:
    """Rows of `ranked_latents` that have a score."""
    return torch.isfinite(group.scores).nonzero()[:, 0]
