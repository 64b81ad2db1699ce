"""Feature spaces φ, in which samples drift: latents in, several named sets of vectors (keys) out.

One space a file, each with `load(spec, generator, models_dir)`; `pooling.py` and `keys.py` are shared by all,
`pixels.py` and `vision.py` by those that read images. Keys and pooling are the published ones (METHOD: published
settings); `features.keys` chooses others.

Legend: K samples, T tokens, D features, c latent channels, h, w latent size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from dipole_trainer.compute.micro_batches import Chunks
from dipole_trainer.features import clip, dinov2, latent_mae, latents, teacher_unet, tiny, vit_mae
from dipole_trainer.features.preprocessing import PROCESSOR
from dipole_trainer.features.vision_models import SAFE
from dipole_trainer.generators.one_step import Kind, OneStepGenerator
from dipole_trainer.spec import FeaturesSpec
from dipole_trainer.weights import local_weights


class Features(Protocol):
    def __call__(self, x: Tensor, *, prompt: str, seeds: Sequence[int]) -> dict[str, Tensor]:
        """Keys of latents x (K, c, h, w), float32 in the U-Net's units: {key: (K, T, D)}.

        Differentiable in x, frozen in its weights and deterministic: row k depends on x[k], the prompt and seeds[k]
        alone, so that chunks of any size agree.
        """


Load = Callable[[FeaturesSpec, OneStepGenerator, Path], Features]

PUBLISHED = {"tiny": "tiny", "sd": "latent_mae", "sdxl": "vit_mae"}  # what `auto` is, by the generator's kind
SPACES: dict[str, Load] = {
    "tiny": tiny.load,
    "latents": latents.load,
    "latent_mae": latent_mae.load,
    "vit_mae": vit_mae.load,
    "dinov2": dinov2.load,
    "clip": clip.load,
    "teacher_unet": teacher_unet.load,
}
_VISION = ("config.json", PROCESSOR)
WEIGHTS: dict[str, tuple[str, Sequence[str]]] = {  # of the spaces that load any: the published ones, and their files
    "latent_mae": (latent_mae.WEIGHTS, (latent_mae.FILE,)),
    "vit_mae": (vit_mae.WEIGHTS, (*_VISION, f"{SAFE}|pytorch_model.bin")),
    "dinov2": (dinov2.WEIGHTS, (*_VISION, SAFE)),
    "clip": (clip.WEIGHTS, (*_VISION, SAFE)),
}


def locate(spec: FeaturesSpec, kind: Kind, *, models_dir: Path) -> None:
    """Raise InvalidInput where the weights that `build` will load are not on this machine, or not whole.

    Cheap, and in need of no generator: to be asked before one is loaded.
    """
    space = _space(spec, kind)
    if space in WEIGHTS:
        published, files = WEIGHTS[space]
        local_weights.locate(
            spec.weights or published, models_dir, revision=spec.revision, field="features.weights", files=files
        )


def build(spec: FeaturesSpec, generator: OneStepGenerator, *, models_dir: Path) -> Features:
    """The feature space of a job, on the generator's device.

    Raises InvalidInput where its weights are not on this machine or a key is not one of its.
    """
    return SPACES[_space(spec, generator.kind)](spec, generator, models_dir)


@torch.no_grad()
def check_fit(features: Features, generator: OneStepGenerator) -> None:
    """Raise InvalidInput where a key does not fit the size of the generator's latents: φ is asked once, of noise."""
    features(generator.noise([0]), prompt="a photograph", seeds=[0])


def in_chunks(features: Features, x: Tensor, chunks: Chunks, *, prompt: str, seeds: Sequence[int]) -> dict[str, Tensor]:
    """Keys of latents x (K, c, h, w), of as many samples at once as `chunks` says."""
    parts = chunks.over(
        range(len(x)), lambda rows: features(x[rows], prompt=prompt, seeds=[seeds[row] for row in rows])
    )
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def _space(spec: FeaturesSpec, kind: Kind) -> str:
    return PUBLISHED[kind] if spec.type == "auto" else spec.type
