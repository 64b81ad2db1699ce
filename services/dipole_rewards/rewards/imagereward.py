"""`imagereward`: which image people would prefer for a prompt, says ImageReward v1.0, a BLIP that learnt from rankings.

ImageReward (arXiv 2304.05977) gives about -2…2, over its own training set 0 on average with a deviation of 1.
DIPOLE_REWARD_WEIGHTS names a folder; the first three files may lie in the local Hugging Face cache instead.

    ImageReward.pt, med_config.json   of zai-org/ImageReward, which was THUDM's
    tokenizer.json                    of google-bert/bert-base-uncased
    golden.json     where it is known, {"score": …}: what ImageReward.load("ImageReward-v1.0").score gives the golden
                    image; `dipole rewards verify imagereward` writes it

What is written "[SEP]" or the like in a prompt is a token to the published code, and text here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Self

import torch
from torch import nn

from dipole_rewards.networks.batches import ImageInGroup, MicroBatches, score_all
from dipole_rewards.networks.blip import (
    BertPromptTokenizer,
    ImageRewardNetwork,
    crop_center,
    load_imagereward_network,
    load_prompt_tokenizer,
)
from dipole_rewards.networks.golden_scores import GoldenScore, weights_revision
from dipole_rewards.networks.weight_files import WeightedReward, WeightsFolder, read_torch
from dipole_rewards.reward import BatchedReward, CandidateImages, Scores
from dipole_rewards.settings import WeightSettings

WEIGHTS_FILE, TOKENIZER_REPOSITORY = "ImageReward.pt", "google-bert/bert-base-uncased"
SCORE_MEAN, SCORE_STD = 0.16717362830052426, 1.0333394966054072  # of the raw scores of its training set


class ImageReward(BatchedReward, WeightedReward):
    """Shortest side 224, centre crop; prompts beyond 35 tokens are cut."""

    name = "imagereward"
    model = "zai-org/ImageReward"
    tolerance = 0.1

    def __init__(
        self, network: ImageRewardNetwork, words: BertPromptTokenizer, golden: GoldenScore | None, revision: str
    ) -> None:
        self.network, self.tokenizer, self.golden_score, self.model_revision = network, words, golden, revision
        self.micro_batches = MicroBatches(self.name)

    @classmethod
    def from_settings(cls, settings: WeightSettings, device: str) -> Self:
        folder = WeightsFolder.from_settings(settings, cls.name, explained=__name__)
        weights, config = (folder.find_file(name, cls.model) for name in (WEIGHTS_FILE, "med_config.json"))
        tokenizer = folder.find_file("tokenizer.json", TOKENIZER_REPOSITORY)
        golden = folder.read_golden_score(tolerance=cls.tolerance)
        words = load_prompt_tokenizer(tokenizer, config)
        network = load_imagereward_network(read_torch(weights), settings, device, weights=weights, config=config)
        return cls(network, words, golden, weights_revision(weights))

    def networks(self) -> Sequence[nn.Module]:
        return [self.network]

    @torch.inference_mode()
    def score_groups(self, groups: Sequence[CandidateImages]) -> list[Scores]:
        """Images of all groups run together, each beside its own prompt."""
        prompts = list(dict.fromkeys(group.prompt for group in groups))
        rows = {prompt: row for row, prompt in enumerate(prompts)}
        ids, mask = (tensor.to(self.network.vision.device) for tensor in self.tokenizer(prompts))

        def score_batch(piece: Sequence[ImageInGroup]) -> list[float]:
            asked = [rows[one.group.prompt] for one in piece]
            pixels = torch.stack([crop_center(one.image, self.network.side) for one in piece]).to(ids.device)
            scores: list[float] = ((self.network(pixels, ids[asked], mask[asked]) - SCORE_MEAN) / SCORE_STD).tolist()
            return scores

        return score_all(groups, partial(self.micro_batches, forward=score_batch))
