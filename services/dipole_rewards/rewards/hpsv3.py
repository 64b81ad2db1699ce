"""`hpsv3`: how much people would prefer an image for its prompt, says a vision-language model of 7 B parameters.

HPSv3 (arXiv 2508.03789) gives about -2…15. hpsv3_files tells which files DIPOLE_REWARD_WEIGHTS must hold, hpsv3_model
what is computed from them. It wants a GPU with about 20 GB.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

from torch import nn

from dipole_rewards.networks import hpsv3_files
from dipole_rewards.networks.batches import score_all
from dipole_rewards.networks.golden_scores import GoldenScore
from dipole_rewards.networks.hpsv3_model import HPSv3Scorer
from dipole_rewards.networks.weight_files import WeightedReward
from dipole_rewards.reward import BatchedReward, CandidateImages, Scores
from dipole_rewards.settings import WeightSettings


class HPSv3(BatchedReward, WeightedReward):
    """The score is μ; images and prompts of all groups are one forward pass, where it fits."""

    name = "hpsv3"
    model = hpsv3_files.HPSV3_REPOSITORY
    tolerance = hpsv3_files.GOLDEN_TOLERANCE
    instruction_sha256: ClassVar[str] = "f6ee57479d4e9eee76b49c00dc962e1e696a5a2b3cc32cebd9b1fa76fe27502c"

    def __init__(self, scorer: HPSv3Scorer, golden: GoldenScore | None) -> None:
        self.scorer, self.golden_score = scorer, golden

    @classmethod
    def from_settings(cls, settings: WeightSettings, device: str) -> Self:
        found = hpsv3_files.load_hpsv3(settings, instruction_sha256=cls.instruction_sha256, device=device)
        reward = cls(HPSv3Scorer(found.network, found.tokenizer), found.golden)
        reward.model_revision = found.revision
        return reward

    def networks(self) -> Sequence[nn.Module]:
        return [self.scorer.network]

    def score_groups(self, groups: Sequence[CandidateImages]) -> list[Scores]:
        return score_all(groups, self.scorer)
