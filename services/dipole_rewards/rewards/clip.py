"""`clip`: how well an image fits its prompt, says OpenAI's CLIP ViT-L/14: the cosine of their embeddings.

CLIP (arXiv 2103.00020) gives about 0.1…0.35. DIPOLE_REWARD_WEIGHTS names a folder; the first three files may lie in the
local Hugging Face cache instead.

    model.safetensors, config.json, tokenizer.json   of openai/clip-vit-large-patch14
    golden.json     where it is known, {"score": …}: what transformers' CLIPModel gives the golden image,
                    logits_per_image / exp(logit_scale); `dipole rewards verify clip` writes it
"""

from __future__ import annotations

from typing import Self

from dipole_rewards.networks.clip_encoder import load_encoder
from dipole_rewards.networks.clip_reward import ClipReward
from dipole_rewards.networks.golden_scores import weights_revision
from dipole_rewards.networks.weight_files import WeightsFolder, read_safetensors
from dipole_rewards.settings import WeightSettings


class Clip(ClipReward):
    """Shortest side 224, centre crop; prompts beyond 77 tokens are cut."""

    name = "clip"
    model = "openai/clip-vit-large-patch14"
    tolerance = 0.005

    @classmethod
    def from_settings(cls, settings: WeightSettings, device: str) -> Self:
        folder = WeightsFolder.from_settings(settings, cls.name, explained=__name__)
        weights, config, tokenizer = (
            folder.find_file(name, cls.model) for name in ("model.safetensors", "config.json", "tokenizer.json")
        )
        golden = folder.read_golden_score(tolerance=cls.tolerance)
        state = read_safetensors(weights)
        encoder = load_encoder(state, settings, device, weights=weights, config=config, tokenizer=tokenizer)
        return cls(encoder, golden, weights_revision(weights))
