"""Rollouts: a group's samples, the features they have, and their gradient. What the loop knows of torch is mostly here.

A group goes through: `sample_group` (K samples) → `decode_group` (the images to be ranked) → `prepare_features`
(features, and the base's samples: work for the time the rewards take) → `group_gradient` (once its order is known).
Samples and their features keep their graphs on this way as far as there is room; `group_gradient` makes the rest again.

Legend: K samples of the current weights, R ranked samples, c, h, w latent size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dipole.errors import NotFinite
from dipole.protocol.latents import Latents
from dipole_trainer.compute.graph_budget import GraphBudget, GroupGraphs, KeptGraph
from dipole_trainer.compute.micro_batches import MicroBatches
from dipole_trainer.compute.transfers import take_rows, to_device
from dipole_trainer.features import FeatureExtractor, extract_features, join_features, reads_pixels
from dipole_trainer.generators.images import vae
from dipole_trainer.generators.images.candidate_images import DecodedCandidates
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.methods import METHODS
from dipole_trainer.methods.base import FeatureSets, MethodLoss, RankedSamples
from dipole_trainer.ranking.groups import CandidateGroup
from dipole_trainer.ranking.lazy_images import LazyImages
from dipole_trainer.ranking.selection import GroupOrder, select_share
from dipole_trainer.seeds import derive_seeds
from dipole_trainer.spec import PromptSpec, TrainSpec
from dipole_trainer.training.chunked_gradient import LossScale, OutputGradients, output_gradients, parameter_gradient


@dataclass
class SampledGroup:
    """A group on its way: what is needed to turn its order into gradients.

    A candidate that is not finite leaves it: `rows` are those of the K that are there, `flaws` why others are not.
    """

    index: int  # its place in the window
    prompt: PromptSpec
    rows: Sequence[int]
    seeds: Sequence[int]
    noise: Tensor  # (K, c, h, w)
    ranked_latents: Tensor  # (R, c, h, w), what the rewards see
    x: Tensor  # (K, c, h, w) of the weights that drew it
    ranks_itself: bool  # ranked is x
    ranks_candidates: bool = True  # row k of ranked is of candidate rows[k]; pairs are others
    flaws: dict[int, str] = field(default_factory=dict)
    candidates: CandidateGroup | None = None  # what rewards are asked, for whoever has to ask again
    images: NDArray[np.uint8] | LazyImages | None = None  # (R, H, W, 3), flawed ones too: what a recording shows of it
    graphs: GroupGraphs = field(default_factory=GroupGraphs)  # of x, while x is of the present weights
    graphs_used: int = 0  # samples that were not drawn again for their gradient
    is_prepared: bool = False
    x_ref: Tensor | None = None
    phi_ref: FeatureSets = field(default_factory=dict)
    phi_ranked: FeatureSets = field(default_factory=dict)

    def drop_features(self) -> None:
        """Features, the base's samples, graphs: they are large, and made again where they are needed again."""
        self.is_prepared, self.x_ref, self.phi_ref, self.phi_ranked = False, None, {}, {}
        self.graphs.clear()

    def leave_out(self, flaws: Mapping[int, str]) -> None:
        """Remove these of the K candidates, each for its reason."""
        self.flaws.update(flaws)
        kept = [place for place, row in enumerate(self.rows) if row not in flaws]
        if len(kept) == len(self.rows):
            return
        self.graphs.drop_from(next(place for place, row in enumerate(self.rows) if row in flaws))
        self.rows, self.seeds = ([each[place] for place in kept] for each in (self.rows, self.seeds))
        self.noise, self.x = self.noise[kept], self.x[kept]
        self.x_ref = None if self.x_ref is None else self.x_ref[kept]
        self.phi_ref = {key: value[kept] for key, value in self.phi_ref.items()}
        if self.ranks_candidates:
            self.ranked_latents = self.ranked_latents[kept]
            self.phi_ranked = {key: value[kept] for key, value in self.phi_ranked.items()}


class Rollout:
    """Draws groups of one job and differentiates their losses."""

    def __init__(
        self,
        spec: TrainSpec,
        generator: OneStepGenerator,
        features: FeatureExtractor,
        micro_batches: MicroBatches,
        graphs: GraphBudget | None = None,
        tiny_decoder: Any = None,
    ) -> None:
        """`graphs` says how many are kept; none if absent. `tiny_decoder` is what `decode_tiny` decodes with."""
        self._tiny_decoder = tiny_decoder
        self.spec, self.generator, self.features, self.micro_batches = spec, generator, features, micro_batches
        self.graphs = graphs or GraphBudget(0)
        self.method, self.settings = METHODS[spec.method.type], spec.method.settings
        self.moves_every_sample = self.method.moves_every_sample and self.settings.moves_share() == 1
        self._needs_reference = self.method.needs_reference and self.settings.pulls_to_base()
        # whether φ is of pixels, so that whatever was drawn is decoded here anyway
        self.reads_pixels = reads_pixels(features, self.settings)
        self._encode_pixels = getattr(features, "encode_pixels") if self.reads_pixels else None  # noqa: B009
        self._computes_in_half = LossScale() if spec.precision == "fp16" else None

    @torch.no_grad()
    def sample_group(self, step: int, index: int, prompt: PromptSpec, *, keep_graphs: bool = True) -> SampledGroup:
        """K samples of a prompt, functions of (seed, step, index) and the weights. `keep_graphs` says that the weights
        will be the same when the group is trained on.
        """
        seeds = derive_seeds(self.spec.seed, step, index, count=self.spec.candidates)
        noise = self.generator.draw_noise(seeds)

        def draw_noise(purpose: str) -> Tensor:
            return self.generator.draw_noise(derive_seeds(self.spec.seed, step, index, purpose, count=len(seeds)))

        if self.method.make_noises:
            noise = self.method.make_noises(noise, draw_noise, self.settings)
        x, graphs = self._sample(noise, prompt.prompt, keep_graphs=keep_graphs)
        ranked = self.method.explore_around(x, draw_noise, self.settings) if self.method.explore_around else x
        return SampledGroup(
            index, prompt, range(len(seeds)), seeds, noise, ranked, x, ranks_itself=ranked is x, graphs=graphs
        )

    def decode_group(self, drawn: SampledGroup) -> tuple[NDArray[np.uint8], dict[int, str]]:
        """Images (R, H, W, 3) to be ranked, and by row why there is none. Raises NotFinite where there is none at all.

        Where φ reads pixels it is taken of them here: nothing is decoded twice.
        """
        return self._read_images(self.decode_on_device(drawn))

    @torch.no_grad()
    def decode_tiny(self, drawn: SampledGroup) -> tuple[NDArray[np.uint8], dict[int, str]]:
        """What `decode_group` gives, approximately, by the small decoder."""
        return self._read_images(self._decode(drawn.ranked_latents, self._tiny_decoder))

    def pack_group(self, drawn: SampledGroup) -> tuple[Latents, dict[int, str]]:
        """Latents (R, c, h, w) to be ranked, and by row why there are none. Raises NotFinite where there are none at
        all.
        """
        latents, sound = self.generator.pack_latents(drawn.ranked_latents)
        why = f"not_finite: latents in {self.generator.precision}"
        flaws = {row: why for row, fine in enumerate(sound) if not fine}
        self._require_one(flaws, len(latents))
        return latents, flaws

    def decode_later(self, drawn: SampledGroup) -> LazyImages:
        """What `decode_group` gives, once somebody has use for it; candidates that then have no image are left out."""
        ranked = drawn.ranked_latents

        @torch.no_grad()
        def decode() -> tuple[NDArray[np.uint8], dict[int, str]]:
            images, flaws = self._read_images(self._decode(ranked, self.generator.vae))
            drawn.leave_out({row: why for row, why in flaws.items() if row not in drawn.flaws})
            return images, flaws

        return LazyImages(len(ranked), decode)

    def _decode(self, x: Tensor, decoder: Any) -> list[DecodedCandidates]:
        """Images of latents x (R, c, h, w), in micro-batches."""

        def decode(rows: list[int]) -> DecodedCandidates:
            return DecodedCandidates.of_pixels(vae.decode_pixels(decoder, take_rows(x, rows)), take_rows(x, rows))

        return self.micro_batches.map(range(len(x)), decode)

    def _read_images(self, decoded: list[DecodedCandidates]) -> tuple[NDArray[np.uint8], dict[int, str]]:
        images, flaws = self.generator.read_candidates(decoded)
        self._require_one(flaws, len(images))
        return images, flaws

    def _require_one(self, flaws: Mapping[int, str], count: int) -> None:
        """Raise NotFinite where none of so many candidates is left."""
        if len(flaws) == count:
            raise NotFinite(self.generator.describe_flaws(flaws, count))

    @torch.no_grad()
    def decode_on_device(self, drawn: SampledGroup) -> list[DecodedCandidates]:
        """What `decode_group` reads, in micro-batches."""
        ranked = drawn.ranked_latents
        if not (self.reads_pixels and drawn.ranks_itself):
            drawn.phi_ranked = {}
            return self._decode(ranked, self.generator.vae)

        def decode(rows: list[int]) -> tuple[DecodedCandidates, FeatureSets]:
            phi, pixels = self._encode_samples(drawn, rows)
            assert pixels is not None
            return DecodedCandidates.of_pixels(pixels, take_rows(ranked, rows)), phi

        decoded, phi = zip(*self.micro_batches.map(range(len(ranked)), decode), strict=True)
        drawn.phi_ranked = join_features(phi)
        return list(decoded)

    @torch.no_grad()
    def prepare_features(self, drawn: SampledGroup) -> None:
        """Whatever does not need the order: features of what was ranked, and the base's samples on the same noises."""
        if drawn.is_prepared:
            return
        prompt, seeds = drawn.prompt.prompt, drawn.seeds
        if self._needs_reference:
            noise = drawn.noise
            parts = self.micro_batches.map(
                range(len(noise)), lambda rows: self.generator.draw_reference(take_rows(noise, rows), prompt)
            )
            drawn.x_ref = torch.cat(parts)
        if self.settings.uses_features():
            if not drawn.ranks_itself:
                ranked_seeds = derive_seeds(self.spec.seed, "ranked", prompt, count=len(drawn.ranked_latents))
                drawn.phi_ranked = self._extract_features(drawn.ranked_latents, prompt, ranked_seeds)
            elif not drawn.phi_ranked:
                drawn.phi_ranked = self._encode_group(drawn)
            if drawn.x_ref is not None:
                drawn.phi_ref = self._extract_features(drawn.x_ref, prompt, seeds)
        self.leave_out_flawed(drawn)
        drawn.is_prepared = True

    def leave_out_flawed(self, drawn: SampledGroup) -> None:
        """A candidate with images may have no features: those of its reference or of a network in half precision."""
        parts = [drawn.x, *drawn.phi_ref.values(), *([] if drawn.x_ref is None else [drawn.x_ref])]
        if drawn.ranks_candidates:
            parts += [drawn.ranked_latents, *drawn.phi_ranked.values()]
        sound = vae.finite_rows(*parts).tolist()
        flaws = {row: "not_finite: features" for row, fine in zip(drawn.rows, sound, strict=True) if not fine}
        if len(flaws) == len(drawn.rows):
            raise NotFinite(self.generator.describe_flaws(flaws, len(sound)))
        drawn.leave_out(flaws)

    def group_gradient(
        self, drawn: SampledGroup, order: GroupOrder, *, on_policy: bool
    ) -> tuple[MethodLoss, list[Tensor] | None]:
        """The group's loss, and its share of the step's gradient; None where it has no gradient.

        `on_policy` says that the weights are those that drew it; else x is drawn again with the present ones.
        """
        loss, outputs = self.differentiate_loss(drawn, order, on_policy=on_policy)
        return loss, self.carry_back(drawn, outputs)

    def differentiate_loss(
        self, drawn: SampledGroup, order: GroupOrder, *, on_policy: bool
    ) -> tuple[MethodLoss, OutputGradients]:
        """The group's loss, and its gradient in x and φ."""
        self.prepare_features(drawn)
        if not on_policy:
            drawn.x, drawn.graphs = self._sample(drawn.noise, drawn.prompt.prompt, keep_graphs=True)
            drawn.ranks_itself = False
        phi: FeatureSets = {}
        if self.settings.uses_features():
            phi = drawn.phi_ranked if drawn.ranks_itself else self._encode_group(drawn)
        group = RankedSamples(
            x=drawn.x, phi=phi, x_ref=drawn.x_ref, phi_ref=drawn.phi_ref,
            ranked_latents=drawn.ranked_latents, phi_ranked=drawn.phi_ranked,
            scores=to_device(order.total, drawn.x.device, torch.float32),
            positives=order.selection.positives, negatives=order.selection.negatives, ranks_itself=drawn.ranks_itself,
            moved=select_share(order.total, self.settings.moves_share()),
        )  # fmt: skip
        return output_gradients(lambda samples: self.method.loss(samples, self.settings), group)

    def carry_back(self, drawn: SampledGroup, outputs: OutputGradients) -> list[Tensor] | None:
        """The group's share of the step's gradient, from its loss's gradient in x and φ; None where it has none."""
        return parameter_gradient(
            outputs, lambda rows: self.sample_with_graph(drawn, rows, needs_features=bool(outputs.phi)),
            self.generator.parameters(), self.micro_batches,
            scale=1 / self.spec.prompts_per_step, half=self._computes_in_half,
            count=len(drawn.x) if self.moves_every_sample else None,
        )  # fmt: skip

    def sample_with_graph(
        self, drawn: SampledGroup, rows: list[int], *, needs_features: bool
    ) -> tuple[Tensor, FeatureSets]:
        """x of these samples, and φ where it is needed, with the graph behind them: the one that was kept, or anew."""
        prompt, seeds = drawn.prompt.prompt, [drawn.seeds[row] for row in rows]
        phi: FeatureSets = {}
        if (kept := drawn.graphs.take(rows)) is not None:
            x, phi = kept.x, kept.phi
            drawn.graphs_used += len(rows)
        else:
            x = self.generator(take_rows(drawn.noise, rows), prompt)
        if needs_features and not phi:
            phi, _ = self._encode(x, prompt, seeds)
        return x, phi

    def _sample(self, noise: Tensor, prompt: str, *, keep_graphs: bool) -> tuple[Tensor, GroupGraphs]:
        """x, without a graph, and what is kept of those behind it."""
        graphs = self.graphs.open_group()
        keep_graphs = keep_graphs and self.moves_every_sample

        def make_one() -> object:
            x = self.generator(noise[:1], prompt)
            return x, self._encode(x, prompt, [0]) if self.settings.uses_features() else None

        def sample(rows: list[int]) -> Tensor:
            room = self.graphs.find_room(len(rows), make_one) if keep_graphs else 0
            with torch.set_grad_enabled(room > 0):
                x = self.generator(take_rows(noise, rows), prompt)
            if room:
                graphs.put(rows, KeptGraph(x, room))
            return x.detach()

        return torch.cat(self.micro_batches.map(range(len(noise)), sample)), graphs

    @torch.no_grad()
    def _encode_samples(self, drawn: SampledGroup, rows: list[int]) -> tuple[FeatureSets, Tensor | None]:
        """φ of some samples, and their pixels where it reads those; its graph is kept on top of x's."""
        prompt, seeds = drawn.prompt.prompt, [drawn.seeds[row] for row in rows]
        if (kept := drawn.graphs.get(rows)) is None:
            return self._encode(take_rows(drawn.x, rows), prompt, seeds)
        with torch.enable_grad():
            kept.phi, pixels = self._encode(kept.x, prompt, seeds)
        return {key: value.detach() for key, value in kept.phi.items()}, None if pixels is None else pixels.detach()

    def _encode(self, x: Tensor, prompt: str, seeds: Sequence[int]) -> tuple[FeatureSets, Tensor | None]:
        """φ of x, and the pixels on the way to it where it reads those."""
        if self._encode_pixels is None:
            return self.features(x, prompt=prompt, seeds=seeds), None
        pixels = self.generator.decode_pixels(x)
        return self._encode_pixels(pixels), pixels

    def _encode_group(self, drawn: SampledGroup) -> FeatureSets:
        """φ of x, without a graph."""
        return join_features(
            self.micro_batches.map(range(len(drawn.x)), lambda rows: self._encode_samples(drawn, rows)[0])
        )

    @torch.no_grad()
    def _extract_features(self, x: Tensor, prompt: str, seeds: Sequence[int]) -> FeatureSets:
        return extract_features(self.features, x, self.micro_batches, prompt=prompt, seeds=seeds)
