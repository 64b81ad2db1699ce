"""`aesthetic`: how much people like the look of an image, whatever its prompt, says LAION's aesthetic predictor v2.

It was trained on ratings of 1…10 (SAC, LAION-Logos and AVA): a linear head on OpenAI's CLIP ViT-L/14, whose
embeddings alone it can read; another CLIP's would be scored as noise. DIPOLE_REWARD_WEIGHTS names a folder; the first
two files may lie in the local Hugging Face cache instead.

    model.safetensors, config.json       of openai/clip-vit-large-patch14
    sac+logos+ava1-l14-linearMSE.pth     of github.com/christophschuhmann/improved-aesthetic-predictor
    golden.json     where it is known, {"score": …}: what its simple_inference.py gives the golden image; `dipole
                    rewards verify aesthetic` writes it
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from torch import nn

from dipole.errors import ConfigurationError
from dipole_rewards.networks.clip_encoder import load_encoder
from dipole_rewards.networks.clip_reward import ClipReward, ScoreEmbeddings
from dipole_rewards.networks.golden_scores import weights_revision
from dipole_rewards.networks.weight_files import WeightsFolder, read_safetensors, read_torch
from dipole_rewards.settings import WeightSettings

HEAD_FILE = "sac+logos+ava1-l14-linearMSE.pth"
HEAD_SOURCE = f"https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/{HEAD_FILE}"


class Aesthetic(ClipReward):
    """The prompt is ignored; shortest side 224, centre crop; the head is always float32."""

    name = "aesthetic"
    model = "laion-aesthetic-v2"
    tolerance = 0.1
    head: nn.Sequential

    @classmethod
    def from_settings(cls, settings: WeightSettings, device: str) -> Self:
        folder, clip = (
            WeightsFolder.from_settings(settings, cls.name, explained=__name__),
            "openai/clip-vit-large-patch14",
        )
        weights, config = (folder.find_file(name, clip) for name in ("model.safetensors", "config.json"))
        linear = folder.find_file(HEAD_FILE, HEAD_SOURCE)
        golden = folder.read_golden_score(tolerance=cls.tolerance)
        encoder = load_encoder(read_safetensors(weights), settings, device, weights=weights, config=config)
        reward = cls(encoder, golden, weights_revision(weights, linear))
        reward.head = load_head(linear).to(device)
        return reward

    def networks(self) -> Sequence[nn.Module]:
        return [*super().networks(), self.head]

    def make_scorer(self, prompts: Sequence[str]) -> ScoreEmbeddings:
        return lambda images, _: self.head(images)[:, 0]


def load_head(path: Path) -> nn.Sequential:
    """768-1024-128-64-16-1; what looks like missing activations is published so, and dropout does nothing here."""
    head = nn.Sequential(
        nn.Linear(768, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2),
        nn.Linear(128, 64), nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1),
    )  # fmt: skip
    try:
        head.load_state_dict({name.removeprefix("layers."): value for name, value in read_torch(path).items()})
    except RuntimeError as error:
        raise ConfigurationError(f"{path} is not LAION's linear head of CLIP ViT-L/14: {error}") from error
    return head.eval().requires_grad_(False)
