"""`pickscore`: which image people would pick for a prompt, says a CLIP ViT-H-14 that learnt from their picks.

PickScore (arXiv 2305.01569) gives exp(logit_scale) times the cosine, about 17…25. DIPOLE_REWARD_WEIGHTS names a folder;
the first three files may lie in the local Hugging Face cache instead.

    model.safetensors, config.json   of yuvalkirstain/PickScore_v1
    tokenizer.json                   of laion/CLIP-ViT-H-14-laion2B-s32B-b79K, whose processor it was trained with
    golden.json     where it is known, {"score": …}: what the model card's code gives the golden image; `dipole rewards
                    verify pickscore` writes it
"""

from __future__ import annotations

from typing import Self

from dipole_rewards.networks.clip_encoder import load_encoder
from dipole_rewards.networks.clip_reward import ClipReward
from dipole_rewards.networks.golden_scores import weights_revision
from dipole_rewards.networks.weight_files import WeightsFolder, read_safetensors
from dipole_rewards.settings import WeightSettings

PROCESSOR_REPOSITORY = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


class PickScore(ClipReward):
    """Shortest side 224, centre crop; prompts beyond 77 tokens are cut."""

    name = "pickscore"
    model = "yuvalkirstain/PickScore_v1"
    tolerance = 0.5

    @classmethod
    def from_settings(cls, settings: WeightSettings, device: str) -> Self:
        folder = WeightsFolder.from_settings(settings, cls.name, explained=__name__)
        weights, config = (folder.find_file(name, cls.model) for name in ("model.safetensors", "config.json"))
        tokenizer = folder.find_file("tokenizer.json", PROCESSOR_REPOSITORY)
        golden = folder.read_golden_score(tolerance=cls.tolerance)
        state = read_safetensors(weights)
        encoder = load_encoder(state, settings, device, weights=weights, config=config, tokenizer=tokenizer)
        reward = cls(encoder, golden, weights_revision(weights))
        # before bfloat16 takes one part in a hundred of it
        reward.scale = state["logit_scale"].float().exp().item()
        return reward
