"""`hpsv2`: which image people would prefer for a prompt, says HPSv2.1, a CLIP ViT-H-14 that learnt from their choices.

HPSv2 (arXiv 2306.09341) gives the cosine, about 0.15…0.35; tables show it times 100. DIPOLE_REWARD_WEIGHTS names a
folder; the first three files may lie in the local Hugging Face cache instead.

    HPS_v2.1_compressed.pt        of xswu/HPSv2
    config.json, tokenizer.json   of laion/CLIP-ViT-H-14-laion2B-s32B-b79K, the same network in transformers' format
    golden.json     {"score": …}: what hpsv2.score(…, hps_version="v2.1") gives weights.golden_image() and
                    "a soft gradient"

Published prompts also pass through ftfy, which mends broken encodings, and have HTML's entities resolved; here they
do not.
"""

from __future__ import annotations

from typing import Self

from torch import Tensor

from dipole_rewards.networks.clip_encoder import load_encoder
from dipole_rewards.networks.clip_images import padded
from dipole_rewards.networks.clip_reward import ClipReward
from dipole_rewards.networks.open_clip import as_transformers
from dipole_rewards.networks.weight_files import Folder, read_torch, revision
from dipole_rewards.reward import Pixels
from dipole_rewards.settings import WeightSettings

FILE, NETWORK = "HPS_v2.1_compressed.pt", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


class HPSv2(ClipReward):
    """Longest side 224, black margins; prompts beyond 77 tokens are cut."""

    name = "hpsv2"
    model = "xswu/HPSv2:v2.1"
    tolerance = 0.005

    @classmethod
    def open(cls, settings: WeightSettings, device: str) -> Self:
        folder = Folder.of(settings, cls.name, explained=__name__)
        weights = folder.find(FILE, "xswu/HPSv2")
        config, tokenizer = (folder.find(name, NETWORK) for name in ("config.json", "tokenizer.json"))
        golden = folder.golden(tolerance=cls.tolerance)
        state = as_transformers(read_torch(weights, within="state_dict"))
        encoder = load_encoder(state, settings, device, weights=weights, config=config, tokenizer=tokenizer)
        return cls(encoder, golden, revision(weights))

    @staticmethod
    def prepare(image: Pixels, side: int) -> Tensor:
        return padded(image, side)
