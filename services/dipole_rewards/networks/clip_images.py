"""Images as CLIP's networks take them: bicubic to their side, made square by a crop or a margin, CLIP's normalisation.

Resizing is Pillow's, on 8 bits, as the published pipelines do it.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dipole_rewards.reward import Pixels

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def resize_and_crop(image: Pixels, side: int) -> Tensor:
    """CLIP's own: an image (H, W, 3) with its shortest side resized to `side`, and of that the middle, (3, side, side).

    Where the rest is odd the crop is transformers', rounded down; OpenAI's code rounds half of these up, one pixel on.
    """
    height, width = image.shape[:2]
    short = min(height, width)
    height, width = (side if edge == short else int(side * edge / short) for edge in (height, width))
    top, left = (height - side) // 2, (width - side) // 2
    return normalize_pixels(_resize(image, height, width)[:, top : top + side, left : left + side])


def resize_and_pad(image: Pixels, side: int) -> Tensor:
    """HPSv2's: the longest side resized to `side`, black margins beside the shorter one, (3, side, side)."""
    scale = side / max(image.shape[:2])
    height, width = (max(1, round(edge * scale)) for edge in image.shape[:2])
    canvas = torch.zeros(3, side, side)
    top, left = (side - height) // 2, (side - width) // 2
    canvas[:, top : top + height, left : left + width] = _resize(image, height, width)
    return normalize_pixels(canvas)


def normalize_pixels(image: Tensor) -> Tensor:
    """(…, 3, h, w) of 0…1 with CLIP's mean and deviation taken out."""
    mean, std = (image.new_tensor(value)[:, None, None] for value in (CLIP_MEAN, CLIP_STD))
    return (image - mean) / std


def _resize(image: Pixels, height: int, width: int) -> Tensor:
    bicubic = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(bicubic)).permute(2, 0, 1).float() / 255
