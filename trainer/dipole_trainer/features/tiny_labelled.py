"""The tiny world's feature space that saw labels: a small convolutional classifier of latents.

It was trained to say which shape of which colour stands in each quadrant (scripts/train-tiny, stage `encoder`), which
is what the reward `shapes` judges, so what a method reaches in it is an upper line and no fair comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dipole_trainer.features.keys import choose_keys
from dipole_trainer.generators.one_step import TINY_TURBO, OneStepGenerator
from dipole_trainer.spec import FeaturesSpec

SHAPE_CLASSES, COLOUR_CLASSES = 5, 7  # "empty" first
KEYS = ("mean", "layout", "classes", "objects")


class TinyResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        moved: Tensor = self.body(x)
        return x + moved


class TinyEncoder(nn.Module):
    """Latents (B, 4, 8, 8) to one D=64 vector a quadrant."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(4, width, 3, padding=1), TinyResidualBlock(width),
            nn.Conv2d(width, width, 3, stride=2, padding=1), TinyResidualBlock(width),
            nn.Conv2d(width, width, 3, stride=2, padding=1), TinyResidualBlock(width), nn.SiLU(),
        )  # fmt: skip
        self.shape_head = nn.Linear(width, SHAPE_CLASSES)
        self.colour_head = nn.Linear(width, COLOUR_CLASSES)

    def forward(self, latents: Tensor) -> Tensor:
        """One vector a quadrant, (B, 4, 64)."""
        grid: Tensor = self.trunk(latents)  # (B, 64, 2, 2)
        return grid.flatten(2).transpose(1, 2)

    def classify(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of shape (B, 4, 5) and colour (B, 4, 7) of each quadrant."""
        quadrants = self(latents)
        return self.shape_head(quadrants), self.colour_head(quadrants)

    @classmethod
    def load(cls, path: Path) -> TinyEncoder:
        encoder = cls()
        encoder.load_state_dict({name: value.float() for name, value in load_file(path).items()})
        return encoder.eval().requires_grad_(False)


class TinyLabelledFeatures:
    """Keys of TinyEncoder, one vector a sample each.

    `mean` of the quadrants' vectors, `layout` all four in their places, `classes` the probabilities of shape and colour
    in each quadrant, `objects` how much of each coloured shape the image has, wherever it stands.
    """

    def __init__(self, encoder: TinyEncoder, wanted: Sequence[str] = ()) -> None:
        self.encoder = encoder.eval().requires_grad_(False)
        self.keys = choose_keys(wanted, KEYS, KEYS, space="tiny_labelled")

    def __call__(self, x: Tensor, *, prompt: str, seeds: Sequence[int]) -> dict[str, Tensor]:
        quadrants = self.encoder(x)  # (K, 4, 64)
        shapes, colours = self.encoder.shape_head(quadrants), self.encoder.colour_head(quadrants)
        classes = torch.cat([shapes.softmax(-1), colours.softmax(-1)], -1)
        # (K, 24)
        objects = (shapes.softmax(-1)[..., 1:, None] * colours.softmax(-1)[..., None, 1:]).sum(1).flatten(1)
        found = {
            "mean": quadrants.mean(1, keepdim=True),
            "layout": quadrants.flatten(1)[:, None],
            "classes": classes.flatten(1)[:, None],
            "objects": objects[:, None],
        }
        return {key: found[key] for key in self.keys}


def load_tiny_labelled(spec: FeaturesSpec, generator: OneStepGenerator, models_dir: Path) -> TinyLabelledFeatures:
    return TinyLabelledFeatures(
        TinyEncoder.load(TINY_TURBO / "encoders/tiny_labelled.safetensors").to(generator.device), spec.keys
    )
