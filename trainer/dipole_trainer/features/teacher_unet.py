"""The frozen base's own U-Net as a feature space: what its blocks put out for lightly noised latents and the prompt.

As published, the noise is simply added, `x + noise · ε`, and the timestep is passed to the U-Net, but no scheduler
scales x and the noise. Each block's map is averaged over squares and taken as one vector a sample. ε comes from the
sample's seed, so that a sample, its reference and its copies among the anchors share it, and gathering features is
exact (METHOD).

Legend: K samples, C channels, h', w' size of a block's map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from dipole_trainer.compute.transfers import send
from dipole_trainer.features.keys import choose_keys
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.spec import FeaturesSpec

PUBLISHED_BLOCKS = ("down_blocks.2", "mid_block", "up_blocks.0")
# changes both halves of a seed: the sample itself was drawn from the seed as it is
NOISE_SALT = 0x5DEECE66D5DEECE6

ExtractActivations = Callable[[Tensor, int, str, Sequence[str]], dict[str, Tensor]]


class TeacherUnetFeatures:
    def __init__(self, extract_activations: ExtractActivations, blocks: Sequence[str], spec: FeaturesSpec) -> None:
        """`extract_activations` is a generator's; `blocks` are the names that its U-Net has."""
        self._extract_activations, self._spec = extract_activations, spec
        self.keys = choose_keys(spec.keys, blocks, PUBLISHED_BLOCKS, space="teacher_unet")

    def __call__(self, x: Tensor, *, prompt: str, seeds: Sequence[int]) -> dict[str, Tensor]:
        x_t = x
        if self._spec.noise:
            x_t = x + self._spec.noise * send(draw_noise(x.shape[1:], seeds).to(x.dtype), x.device)
        maps = self._extract_activations(x_t, self._spec.timestep, prompt, self.keys)
        return {key: average_squares(maps[key], self._spec.pool).flatten(1)[:, None] for key in self.keys}


def draw_noise(shape: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """Unit normal ε (K, *shape), one draw a seed, the same on every device and in chunks of any size."""
    draws = [torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed ^ NOISE_SALT)) for seed in seeds]
    return torch.stack(draws)


def average_squares(grid: Tensor, side: int) -> Tensor:
    """A map (K, C, h', w') averaged over side×side squares; one smaller than a square, as a whole."""
    if min(grid.shape[2:]) < side:
        return grid.mean((2, 3), keepdim=True)
    return functional.avg_pool2d(grid, side)


def load_teacher_unet(spec: FeaturesSpec, generator: OneStepGenerator, models_dir: Path) -> TeacherUnetFeatures:
    unet = generator.denoiser
    middle = ["mid_block"] if unet.mid_block is not None else []
    down, up = ([f"{side}.{i}" for i in range(len(getattr(unet, side)))] for side in ("down_blocks", "up_blocks"))
    return TeacherUnetFeatures(generator.extract_activations, [*down, *middle, *up], spec)
