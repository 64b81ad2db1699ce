"""The latents themselves as a feature space: nothing is loaded, and nothing but their own distances is known.

`latents` is all of them as one vector a sample; the other keys are their mean and spread, whole and on patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from dipole_trainer.features.keys import chosen
from dipole_trainer.features.pooling import map_keys, pooled
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.spec import FeaturesSpec

WHOLE = "latents"
POOLED = map_keys([WHOLE])


class Latents:
    def __init__(self, wanted: Sequence[str] = ()) -> None:
        self.keys = chosen(wanted, [WHOLE, *POOLED], [WHOLE], space="latents")

    def __call__(self, x: Tensor, *, prompt: str, seeds: Sequence[int]) -> dict[str, Tensor]:
        return {key: x.flatten(1)[:, None] if key == WHOLE else pooled(x, POOLED[key][1], key=key) for key in self.keys}


def load(spec: FeaturesSpec, generator: OneStepGenerator, models_dir: Path) -> Latents:
    return Latents(spec.keys)
