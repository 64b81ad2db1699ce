"""`hpsv2`: which image people would prefer for a prompt, says HPSv2.1, a CLIP ViT-H-14 that learnt from their choices.

HPSv2 (arXiv 2306.09341) gives the cosine, about 0.15…0.35; tables show it times 100. DIPOLE_REWARD_WEIGHTS names a
folder; the first three files may lie in the local Hugging Face cache instead.

    HPS_v2.1_compressed.pt        of xswu/HPSv2
    config.json, tokenizer.json   of laion/CLIP-ViT-H-14-laion2B-s32B-b79K, the same network in transformers' format
    golden.json     where it is known, {"score": …}: what hpsv2.score(…, hps_version="v2.1") gives the golden image;
                    `dipole rewards verify hpsv2` writes it

Published prompts also pass through ftfy, which mends broken encodings, and have HTML's entities resolved; here they
do not.
"""

from __future__ import annotations

from typing import Self

from torch import Tensor

from dipole_rewards.networks.clip_encoder import load_encoder
from dipole_rewards.networks.clip_reward import ClipReward
from dipole_rewards.networks.golden_scores import weights_revision
from dipole_rewards.networks.open_clip import convert_to_transformers
from dipole_rewards.networks.preprocessing import resize_and_pad
from dipole_rewards.networks.weight_files import WeightsFolder, read_torch
from dipole_rewards.reward import Pixels
from dipole_rewards.settings import WeightSettings

WEIGHTS_FILE, NETWORK_REPOSITORY = "HPS_v2.1_compressed.pt", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


class HPSv2(ClipReward):
    """Longest side 224, black margins; prompts beyond 77 tokens are cut."""

    name = "hpsv2"
    model = "xswu/HPSv2:v2.1"
    tolerance = 0.005

    @classmethod
    def from_settings(cls, settings: WeightSettings, device: str) -> Self:
        folder = WeightsFolder.from_settings(settings, cls.name, explained=__name__)
        weights = folder.find_file(WEIGHTS_FILE, "xswu/HPSv2")
        config, tokenizer = (folder.find_file(name, NETWORK_REPOSITORY) for name in ("config.json", "tokenizer.json"))
        golden = folder.read_golden_score(tolerance=cls.tolerance)
        state = convert_to_transformers(read_torch(weights, within="state_dict"))
        encoder = load_encoder(state, settings, device, weights=weights, config=config, tokenizer=tokenizer)
        return cls(encoder, golden, weights_revision(weights))

    @staticmethod
    def preprocess(image: Pixels, side: int) -> Tensor:
        return resize_and_pad(image, side)
