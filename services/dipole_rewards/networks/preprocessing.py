"""Images as vision networks take them: bicubic to their side, made square by a crop or a margin, normalised.

Resizing is Pillow's, on 8 bits, as the published pipelines do it.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dipole_rewards.reward import Pixels

MeanAndStd = tuple[tuple[float, float, float], tuple[float, float, float]]
CLIP_STATISTICS: MeanAndStd = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_STATISTICS: MeanAndStd = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def resize_and_crop(
    image: Pixels, side: int, *, shortest: int | None = None, statistics: MeanAndStd = CLIP_STATISTICS
) -> Tensor:
    """An image (H, W, 3) with its shortest side resized to `shortest`, and of that the middle, (3, side, side).

    CLIP's own resizes to `side` itself. Where the rest is odd the crop is transformers', rounded down; OpenAI's code
    rounds half of these up, one pixel on.
    """
    target = shortest or side
    height, width = image.shape[:2]
    short = min(height, width)
    height, width = (target if edge == short else int(target * edge / short) for edge in (height, width))
    top, left = (height - side) // 2, (width - side) // 2
    cropped = _resize(image, height, width)[:, top : top + side, left : left + side]
    return normalize_pixels(cropped, statistics)


def resize_and_pad(image: Pixels, side: int) -> Tensor:
    """HPSv2's: the longest side resized to `side`, black margins beside the shorter one, (3, side, side)."""
    scale = side / max(image.shape[:2])
    height, width = (max(1, round(edge * scale)) for edge in image.shape[:2])
    canvas = torch.zeros(3, side, side)
    top, left = (side - height) // 2, (side - width) // 2
    canvas[:, top : top + height, left : left + width] = _resize(image, height, width)
    return normalize_pixels(canvas)


def normalize_pixels(image: Tensor, statistics: MeanAndStd = CLIP_STATISTICS) -> Tensor:
    """(…, 3, h, w) of 0…1 with mean and deviation taken out."""
    mean, std = (image.new_tensor(value)[:, None, None] for value in statistics)
    return (image - mean) / std


def _resize(image: Pixels, height: int, width: int) -> Tensor:
    bicubic = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(bicubic)).permute(2, 0, 1).float() / 255
