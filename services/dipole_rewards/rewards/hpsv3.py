"""`hpsv3`: how much people would prefer an image for its prompt, says a vision-language model of 7 B parameters.

HPSv3 (arXiv 2508.03789) gives about -2…15. hpsv3_files tells which files DIPOLE_REWARD_WEIGHTS must hold, hpsv3_model
what is computed from them. It wants a GPU with about 20 GB.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import numpy as np
from pydantic import JsonValue

from dipole.schemas import ItemError
from dipole.settings import load
from dipole_rewards.reward import Golden, Pixels, Reward, Scores
from dipole_rewards.rewards import hpsv3_files
from dipole_rewards.rewards.hpsv3_model import MAX_ASPECT, Scorer
from dipole_rewards.settings import WeightSettings

TOO_THIN = ItemError(code="aspect_ratio", message=f"one side is more than {MAX_ASPECT} times the other")


class HPSv3(Reward):
    """The score is μ; a group of one prompt is one forward pass."""

    name = "hpsv3"
    model = hpsv3_files.HPSV3
    instruction_sha256: ClassVar[str] = "f6ee57479d4e9eee76b49c00dc962e1e696a5a2b3cc32cebd9b1fa76fe27502c"

    def __init__(self, scorer: Scorer, golden: hpsv3_files.GoldenScore) -> None:
        self.scorer, self.known = scorer, golden

    @classmethod
    def load(cls, device: str) -> Self:
        found = hpsv3_files.load(load(WeightSettings), instruction_sha256=cls.instruction_sha256, device=device)
        reward = cls(Scorer(found.network, found.words), found.golden)
        reward.model_revision = found.revision
        return reward

    def score(self, *, prompt: str, images: Sequence[Pixels], metadata: Mapping[str, JsonValue] | None) -> Scores:
        thin = [k for k, image in enumerate(images) if max(image.shape[:2]) > MAX_ASPECT * min(image.shape[:2])]
        rest = [k for k in range(len(images)) if k not in thin]
        scores = dict(zip(rest, self.scorer(prompt, [images[k] for k in rest]), strict=True))
        return Scores([scores.get(k) for k in range(len(images))], errors=dict.fromkeys(thin, TOO_THIN))

    def golden(self) -> Golden:
        image, known = self.golden_image(), self.known
        return Golden(prompt="a soft gradient", image=image, score=known.score, tolerance=known.tolerance)

    @staticmethod
    def golden_image() -> Pixels:
        """48×64: red grows to the right, green downwards."""
        image = np.full((48, 64, 3), 96, np.uint8)
        image[..., 0], image[..., 1] = np.arange(64) * 4, np.arange(48)[:, None] * 5
        return image
