"""Decoded images as a pretrained vision model wants them: its size, its mean and standard deviation, with a graph.

An image is resized to the square that the model's own processor ends with (its crop, where it crops: nothing is cut
off here, as published), bicubic and antialiased as Pillow does it.

Legend: K images, H, W their size, s the model's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dipole.errors import InvalidInput
from dipole_trainer.weights.feature_weights import PROCESSOR_FILE
from dipole_trainer.weights.json_files import read_json_object


class ImagePreprocessor:
    def __init__(self, size: int, mean: Tensor, std: Tensor) -> None:
        """`mean` and `std` (3, 1, 1) of images from 0 to 1."""
        self.size, self.mean, self.std = size, mean, std

    @classmethod
    def from_folder(cls, folder: Path, *, device: torch.device) -> ImagePreprocessor:
        """From the model's `preprocessor_config.json`. Raises InvalidInput."""
        config = read_json_object(folder / PROCESSOR_FILE, field="features.weights")
        try:
            mean, std = (
                torch.tensor(config[name], device=device).view(3, 1, 1) for name in ("image_mean", "image_std")
            )
            return cls(_processor_size(config), mean, std)
        except (ValueError, LookupError, TypeError, RuntimeError) as error:
            raise InvalidInput(
                f"features.weights: {folder / PROCESSOR_FILE} does not say "
                f"the image's size, mean and standard deviation: "
                f"{error}",
                field="features.weights",
            ) from None

    def __call__(self, images: Tensor) -> Tensor:
        """Images (K, 3, H, W) from 0 to 1 to (K, 3, s, s). What is outside of 0 to 1 is clamped, as published."""
        images = images.clamp(0, 1)
        if images.shape[2:] != (self.size, self.size):
            images = functional.interpolate(images, (self.size, self.size), mode="bicubic", antialias=True)
        return (images - self.mean) / self.std


def _processor_size(config: dict[str, Any]) -> int:
    """The side that the processor's images end with: its crop's where it crops, else its size's."""
    size: Any = config["crop_size"] if config.get("do_center_crop") else config["size"]
    if isinstance(size, dict):
        size = size["height"] if "height" in size else size["shortest_edge"]
    return int(size)
