"""`imagereward`: which image people would prefer for a prompt, says ImageReward v1.0, a BLIP that learnt from rankings.

ImageReward (arXiv 2304.05977) gives about -2…2, over its own training set 0 on average with a deviation of 1.
DIPOLE_REWARD_WEIGHTS names a folder; the first three files may lie in the local Hugging Face cache instead.

    ImageReward.pt, med_config.json   of zai-org/ImageReward, which was THUDM's
    tokenizer.json                    of google-bert/bert-base-uncased
    golden.json     {"score": …}: what ImageReward.load("ImageReward-v1.0").score gives "a soft gradient" and
                    weights.golden_image()

What is written "[SEP]" or the like in a prompt is a token to the published code, and text here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Self

import torch

from dipole_rewards.networks.batches import Asked, InPieces, together
from dipole_rewards.networks.blip import Network, Words, cropped, load_network, load_words
from dipole_rewards.networks.weight_files import Folder, GoldenScore, WeightedReward, read_torch, revision
from dipole_rewards.reward import BatchedReward, Group, Scores
from dipole_rewards.settings import WeightSettings

FILE, TOKENIZER = "ImageReward.pt", "google-bert/bert-base-uncased"
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the raw scores of its training set


class ImageReward(BatchedReward, WeightedReward):
    """Shortest side 224, centre crop; prompts beyond 35 tokens are cut."""

    name = "imagereward"
    model = "zai-org/ImageReward"
    tolerance: ClassVar[float] = 0.1
    """How far from the golden score another device's bfloat16 may be, where golden.json does not say."""

    def __init__(self, network: Network, words: Words, golden: GoldenScore, revision: str) -> None:
        self.network, self.words, self.known, self.model_revision = network, words, golden, revision
        self.pieces = InPieces(self.name)

    @classmethod
    def open(cls, settings: WeightSettings, device: str) -> Self:
        folder = Folder.of(settings, cls.name, explained=__name__)
        weights, config = (folder.find(name, cls.model) for name in (FILE, "med_config.json"))
        tokenizer = folder.find("tokenizer.json", TOKENIZER)
        golden = folder.golden(tolerance=cls.tolerance)
        words = load_words(tokenizer, config)
        network = load_network(read_torch(weights), settings, device, weights=weights, config=config)
        return cls(network, words, golden, revision(weights))

    @torch.inference_mode()
    def score_groups(self, groups: Sequence[Group]) -> list[Scores]:
        """Images of all groups run together, each beside its own prompt."""
        prompts = list(dict.fromkeys(group.prompt for group in groups))
        rows = {prompt: row for row, prompt in enumerate(prompts)}
        ids, mask = (tensor.to(self.network.vision.device) for tensor in self.words(prompts))

        def forward(piece: Sequence[Asked]) -> list[float]:
            asked = [rows[one.group.prompt] for one in piece]
            pixels = torch.stack([cropped(one.image, self.network.side) for one in piece]).to(ids.device)
            scores: list[float] = ((self.network(pixels, ids[asked], mask[asked]) - MEAN) / STD).tolist()
            return scores

        return together(groups, partial(self.pieces, forward=forward))
