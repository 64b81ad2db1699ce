"""What the rewards of the CLIP family have in common: `clip`, `pickscore`, `hpsv2` and `aesthetic`.

The prompt is embedded once, the images in as few forward passes as fit, and each image embedding becomes a score.
Cosines of one group lie close together: where memory allows, DIPOLE_REWARD_DTYPE=fp32 tells them apart better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import ClassVar

import torch
from pydantic import JsonValue
from torch import Tensor

from dipole_rewards.reward import Pixels, Scores
from dipole_rewards.rewards.clip_images import cropped
from dipole_rewards.rewards.clip_model import Encoder
from dipole_rewards.rewards.group import InPieces, except_thin
from dipole_rewards.rewards.weights import GoldenScore, WeightedReward


class ClipReward(WeightedReward):
    """Cosine of prompt and image, times `scale`; a subclass says where its weights lie, and may judge otherwise."""

    tolerance: ClassVar[float]
    """How far from the golden score another device's bfloat16 may be, where golden.json does not say."""
    scale = 1.0

    def __init__(self, encoder: Encoder, golden: GoldenScore, revision: str) -> None:
        self.encoder, self.known, self.model_revision = encoder, golden, revision
        self.pieces = InPieces(self.name)

    @staticmethod
    def prepare(image: Pixels, side: int) -> Tensor:
        """(H, W, 3) → (3, side, side), normalised."""
        return cropped(image, side)

    @torch.inference_mode()
    def score(self, *, prompt: str, images: Sequence[Pixels], metadata: Mapping[str, JsonValue] | None) -> Scores:
        judge = self.judge(prompt)

        def forward(piece: Sequence[Pixels]) -> list[float]:
            pixels = torch.stack([self.prepare(image, self.encoder.side) for image in piece])
            scores: list[float] = judge(self.encoder.images(pixels)).tolist()
            return scores

        return except_thin(images, partial(self.pieces, forward=forward))

    def judge(self, prompt: str) -> Callable[[Tensor], Tensor]:
        """What turns unit image embeddings (K, D) into scores (K,)."""
        text = self.encoder.text(prompt)
        return lambda images: self.scale * (images @ text)
