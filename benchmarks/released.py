"""One update of the released loop, for benchmarks/step.py: written by us from what is known of it (METHOD).

prompt      SD-Turbo encodes it once and expands it, SDXL-Turbo encodes K copies
samples     one graph of all K, the U-Net's activations recomputed on the way back
base        a second U-Net
reward      K images are decoded for it, in slices of 4 for SD-Turbo
anchors     rows of the samples, by index
φ           of the K samples, the K of the base, and the P + N anchors: with ViT-MAE each of them is decoded for it, the
            samples with a graph; with the teacher the whole U-Net is run
decoder     in torch's own memory format; ours has its channels last

Three things are as ours has them, so that there is one gradient to compare: keys are averaged (SD-Turbo's script sums
them), ViT-MAE sees every patch (theirs masks three of four), and the teacher's noise is a sample's own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from dipole_trainer.features.teacher_unet import TeacherUnetFeatures
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.methods.drift import drift_loss
from dipole_trainer.ranking.selection import Selection
from dipole_trainer.spec import DrpoSpec, TrainSpec

SLICE = 4  # images that SD-Turbo's script decodes at once for the reward


class ReleasedLoop:
    """From noises and their order to the adapter's gradient."""

    def __init__(self, generator: OneStepGenerator, phi: Any, spec: TrainSpec, prompt: str) -> None:
        self.generator, self.spec, self.prompt = generator, cast(DrpoSpec, spec.method.settings), prompt
        self.reference = copy.deepcopy(generator.denoiser)
        self.reference.disable_adapters()
        self.vae = copy.deepcopy(generator.vae).to(memory_format=torch.contiguous_format)
        self.phi = phi
        if isinstance(phi, TeacherUnetFeatures):
            self.phi = TeacherUnetFeatures(self._extract_activations, phi.keys, spec.features)

    def __call__(self, noise: Tensor, seeds: Sequence[int], chosen: Selection) -> list[Tensor]:
        best, worst = list(chosen.positives), list(chosen.negatives)
        self._encode_prompt(len(noise))
        with self._recomputing(self.generator.denoiser), self._decoder():
            x = self.generator(noise, self.prompt)
            with torch.no_grad(), self._network(self.reference):
                x_ref = self.generator(noise, self.prompt)
            self._decode_for_reward(x.detach())
            own = self.phi(x, prompt=self.prompt, seeds=seeds)
            with torch.no_grad():
                base = self.phi(x_ref, prompt=self.prompt, seeds=seeds)
                rows = best + worst
                anchors = self.phi(x.detach()[rows], prompt=self.prompt, seeds=[seeds[row] for row in rows])
            loss = torch.stack(
                [
                    self._loss(value, anchors[key][: len(best)], anchors[key][len(best) :], base[key])
                    for key, value in own.items()
                ]
            ).mean()
            return list(torch.autograd.grad(loss, self.generator.parameters()))

    def _encode_prompt(self, count: int) -> None:
        copies = count if self.generator.kind == "sdxl" else 1
        with torch.no_grad():
            self.generator.pipeline.encode_prompt([self.prompt] * copies, device=self.generator.device,
                num_images_per_prompt=1, do_classifier_free_guidance=False)  # fmt: skip

    @torch.no_grad()
    def _decode_for_reward(self, x: Tensor) -> None:
        for part in x.split(len(x) if self.generator.kind == "sdxl" else SLICE):
            self.generator.decode_pixels(part)

    def _loss(self, value: Tensor, best: Tensor, worst: Tensor, base: Tensor) -> Tensor:
        own, p, q, ref = (each.flatten(0, 1)[None] for each in (value, best, worst, base))
        spec = self.spec
        preference = drift_loss(
            own, p, q, positive_weight=spec.positive_weight, negative_weight=spec.negative_weight,
            radii=spec.radii, kernel=spec.kernel,
        )  # fmt: skip
        reference = drift_loss(
            own, ref, own.detach(), positive_weight=spec.ref_positive_weight,
            negative_weight=spec.ref_negative_weight, radii=spec.radii, kernel=spec.kernel, mask_negative_self=True,
        )  # fmt: skip
        return preference.loss.mean() + spec.ref_lambda * reference.loss.mean()

    def _extract_activations(self, x_t: Tensor, timestep: int, prompt: str, blocks: Sequence[str]) -> dict[str, Tensor]:
        """The teacher's, of which the whole is run."""
        found: dict[str, Tensor] = {}
        known = dict(self.reference.named_modules())

        def keep(name: str, output: Any) -> None:
            found[name] = (output[0] if isinstance(output, tuple) else output).float()

        handles = [
            known[name].register_forward_hook(lambda module, inputs, output, name=name: keep(name, output))
            for name in blocks
        ]
        generator = self.generator
        with generator._autocast():
            self.reference(
                x_t.to(generator._dtype), torch.tensor(timestep, device=generator.device),
                **generator._conditioning([prompt], len(x_t)),
            )  # fmt: skip
        for handle in handles:
            handle.remove()
        return found

    @contextmanager
    def _network(self, network: nn.Module) -> Iterator[None]:
        trained = self.generator._trained
        before, trained.network = trained.network, network
        try:
            yield
        finally:
            trained.network = before

    @contextmanager
    def _decoder(self) -> Iterator[None]:
        ours, self.generator.vae = self.generator.vae, self.vae
        try:
            yield
        finally:
            self.generator.vae = ours

    @contextmanager
    def _recomputing(self, network: Any) -> Iterator[None]:
        network.enable_gradient_checkpointing()
        try:
            yield
        finally:
            network.disable_gradient_checkpointing()
