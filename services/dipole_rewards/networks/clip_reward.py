"""What the rewards of the CLIP family have in common: `clip`, `pickscore`, `hpsv2` and `aesthetic`.

Each prompt is embedded once, the images of all groups in as few forward passes as fit, and each image embedding becomes
a score. Cosines of one group lie close together: where memory allows, DIPOLE_REWARD_DTYPE=fp32 tells them apart better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from dipole_rewards.networks.batches import ImageInGroup, MicroBatches, score_all
from dipole_rewards.networks.clip_encoder import ClipEncoder
from dipole_rewards.networks.golden_scores import GoldenScore
from dipole_rewards.networks.preprocessing import resize_and_crop
from dipole_rewards.networks.weight_files import WeightedReward
from dipole_rewards.reward import BatchedReward, CandidateImages, Pixels, Scores

ScoreEmbeddings = Callable[[Tensor, Sequence[str]], Tensor]


class ClipReward(BatchedReward, WeightedReward):
    """Cosine of prompt and image, times `scale`; a subclass says where its weights lie, and may judge otherwise."""

    scale = 1.0

    def __init__(self, encoder: ClipEncoder, golden: GoldenScore | None, revision: str) -> None:
        self.encoder, self.golden_score, self.model_revision = encoder, golden, revision
        self.micro_batches = MicroBatches(self.name)

    def networks(self) -> Sequence[nn.Module]:
        return [self.encoder.network]

    @staticmethod
    def preprocess(image: Pixels, side: int) -> Tensor:
        """(H, W, 3) → (3, side, side), normalised."""
        return resize_and_crop(image, side)

    @torch.inference_mode()
    def score_groups(self, groups: Sequence[CandidateImages]) -> list[Scores]:
        judge = self.make_scorer(list(dict.fromkeys(group.prompt for group in groups)))

        def score_batch(piece: Sequence[ImageInGroup]) -> list[float]:
            pixels = torch.stack([self.preprocess(one.image, self.encoder.side) for one in piece])
            scores: list[float] = judge(
                self.encoder.encode_images(pixels), [one.group.prompt for one in piece]
            ).tolist()
            return scores

        return score_all(groups, partial(self.micro_batches, forward=score_batch))

    def make_scorer(self, prompts: Sequence[str]) -> ScoreEmbeddings:
        """What turns unit image embeddings (K, D) and the K prompts, of these, that they belong to into scores (K,)."""
        texts = dict(zip(prompts, self.encoder.encode_texts(prompts), strict=True))
        return lambda images, asked: self.scale * (images * torch.stack([texts[prompt] for prompt in asked])).sum(-1)
