"""The latents themselves as a feature space: nothing is loaded, and without a network.

`latents` is all of them as one vector a sample; the other keys are their mean and spread, whole and on patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from dipole_trainer.features.keys import choose_keys
from dipole_trainer.features.pooling import map_keys, pool_map
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.spec import FeaturesSpec

WHOLE_KEY = "latents"
POOLED_KEYS = map_keys([WHOLE_KEY])


class LatentFeatures:
    def __init__(self, wanted: Sequence[str] = ()) -> None:
        self.keys = choose_keys(wanted, [WHOLE_KEY, *POOLED_KEYS], [WHOLE_KEY], space="latents")

    def __call__(self, x: Tensor, *, prompt: str, seeds: Sequence[int]) -> dict[str, Tensor]:
        return {
            key: x.flatten(1)[:, None] if key == WHOLE_KEY else pool_map(x, POOLED_KEYS[key][1], key=key)
            for key in self.keys
        }


def load_latent_features(spec: FeaturesSpec, generator: OneStepGenerator, models_dir: Path) -> LatentFeatures:
    return LatentFeatures(spec.keys)
