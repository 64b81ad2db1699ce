"""Rollouts: a group's samples, the features they have, and their gradient. What the loop knows of torch is mostly here.

A group goes through: `draw` (K samples without a graph, and the images to be ranked) → `prepare` (features, and the
base's samples: work for the time the rewards take) → `gradient` (once its order is known).

Legend: K samples of the current weights, R ranked samples, c, h, w latent size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dipole_trainer.compute.micro_batches import Chunks
from dipole_trainer.features import Features, in_chunks
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.methods import METHODS
from dipole_trainer.methods.base import Loss, Phi, RankedSamples
from dipole_trainer.ranking.selection import Order
from dipole_trainer.seeds import seeds_for
from dipole_trainer.spec import PromptSpec, TrainSpec
from dipole_trainer.training.chunked_gradient import Headroom, cotangents, gradient


@dataclass
class Drawn:
    """A group on its way: what is needed to turn its order into gradients."""

    index: int  # its place in the window
    prompt: PromptSpec
    seeds: Sequence[int]
    noise: Tensor  # (K, c, h, w)
    ranked: Tensor  # (R, c, h, w), what the rewards see
    x: Tensor  # (K, c, h, w) of the weights that drew it
    own: bool  # ranked is x
    prepared: bool = False
    x_ref: Tensor | None = None
    phi_ref: Phi = field(default_factory=dict)
    phi_ranked: Phi = field(default_factory=dict)


class Rollout:
    """Draws groups of one job and differentiates their losses."""

    def __init__(self, spec: TrainSpec, generator: OneStepGenerator, features: Features, chunks: Chunks) -> None:
        self.spec, self.generator, self.features, self.chunks = spec, generator, features, chunks
        self.method, self.settings = METHODS[spec.method.type], spec.method.settings
        self._reference = self.method.reference and getattr(self.settings, "ref_lambda", 1.0) > 0
        self._half = Headroom() if spec.precision == "fp16" else None

    @torch.no_grad()
    def draw(self, step: int, index: int, prompt: PromptSpec) -> Drawn:
        """K samples of a prompt, functions of (seed, step, index) and the weights."""
        seeds = seeds_for(self.spec.seed, step, index, count=self.spec.candidates)
        noise = self.generator.noise(seeds)

        def draw_more(purpose: str) -> Tensor:
            return self.generator.noise(seeds_for(self.spec.seed, step, index, purpose, count=len(seeds)))

        if self.method.noises:
            noise = self.method.noises(noise, draw_more, self.settings)
        x = self._sampled(noise, prompt.prompt)
        ranked = self.method.explore(x, draw_more, self.settings) if self.method.explore else x
        return Drawn(index, prompt, seeds, noise, ranked, x, own=ranked is x)

    @torch.no_grad()
    def images(self, latents: Tensor) -> NDArray[np.uint8]:
        """Decoded, (R, H, W, 3)."""
        return np.concatenate(self.chunks.over(range(len(latents)), lambda rows: self.generator.decode(latents[rows])))

    @torch.no_grad()
    def prepare(self, drawn: Drawn) -> None:
        """Whatever does not need the order: features of what was ranked, and the base's samples on the same noises."""
        if drawn.prepared:
            return
        prompt, seeds = drawn.prompt.prompt, drawn.seeds
        if self._reference:
            parts = self.chunks.over(
                range(len(drawn.noise)), lambda rows: self.generator.reference(drawn.noise[rows], prompt)
            )
            drawn.x_ref = torch.cat(parts)
        if self.method.features:
            ranked_seeds = seeds if drawn.own else seeds_for(self.spec.seed, "ranked", prompt, count=len(drawn.ranked))
            drawn.phi_ranked = self._phi(drawn.ranked, prompt, ranked_seeds)
            if drawn.x_ref is not None:
                drawn.phi_ref = self._phi(drawn.x_ref, prompt, seeds)
        drawn.prepared = True

    def gradient(self, drawn: Drawn, order: Order, *, fresh: bool) -> tuple[Loss, list[Tensor] | None]:
        """The group's loss, and its share of the step's gradient; None where it has no gradient.

        `fresh` says that the weights are those that drew it; else x is drawn again with the present ones.
        """
        self.prepare(drawn)
        if not fresh:
            drawn.x, drawn.own = self._sampled(drawn.noise, drawn.prompt.prompt), False
        phi: Phi = {}
        if self.method.features:
            phi = drawn.phi_ranked if drawn.own else self._phi(drawn.x, drawn.prompt.prompt, drawn.seeds)
        group = RankedSamples(
            x=drawn.x, phi=phi, x_ref=drawn.x_ref, phi_ref=drawn.phi_ref,
            ranked=drawn.ranked, phi_ranked=drawn.phi_ranked,
            scores=torch.as_tensor(order.total, dtype=torch.float32, device=drawn.x.device),
            positives=order.selection.positives, negatives=order.selection.negatives, own=drawn.own,
        )  # fmt: skip
        loss, found = cotangents(lambda samples: self.method.loss(samples, self.settings), group)
        prompt, seeds = drawn.prompt.prompt, drawn.seeds

        def sample(rows: list[int]) -> tuple[Tensor, Phi]:
            x = self.generator(drawn.noise[rows], prompt)
            return x, self.features(x, prompt=prompt, seeds=[seeds[row] for row in rows]) if found.phi else {}

        share = gradient(
            found, sample, self.generator.parameters(), self.chunks,
            scale=1 / self.spec.prompts_per_step, half=self._half,
        )  # fmt: skip
        return loss, share

    @torch.no_grad()
    def _sampled(self, noise: Tensor, prompt: str) -> Tensor:
        return torch.cat(self.chunks.over(range(len(noise)), lambda rows: self.generator(noise[rows], prompt)))

    @torch.no_grad()
    def _phi(self, x: Tensor, prompt: str, seeds: Sequence[int]) -> Phi:
        return in_chunks(self.features, x, self.chunks, prompt=prompt, seeds=seeds)
