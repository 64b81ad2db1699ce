"""HPSv3's architecture with random weights, at full size and divided, for benchmarks/hpsv3_update.py.

Published shapes have, an image and forward pass, in TFLOP: U-Net 0.804, VAE decoder 2.515, HPSv3 12.0 (786 tokens, 256
of them the image's), latent MAE 0.148. `small` divides widths and heads by 8, tokens and pixels by 4: all that by about
256, so that proportions stay, but for the prompt's 77 tokens, which make its U-Net a quarter too dear.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2VLConfig, Qwen2VLModel

from dipole_rewards.networks.hpsv3_model import MERGE_SIDE, PATCH_SIDE, HPSv3Batch, HPSv3Network, extract_patches
from dipole_rewards.networks.preprocessing import normalize_pixels


@dataclass(frozen=True)
class Size:
    """`divided` divides Qwen2-VL-7B's widths; `image` is the reward's input side, `text` its tokens of text."""

    shape: str
    divided: int
    heads: tuple[int, int, int]  # of the language model: queries and keys; of the vision tower
    image: int
    text: int
    candidates: int
    anchors: int
    needed_gib: int


SIZES = {
    "small": Size("small", 8, (4, 1, 2), 224, 132, 4, 2, 4),
    "full": Size("sd-turbo", 1, (28, 4, 16), 448, 530, 24, 8, 70),
}


class Reward:
    """HPSv3's network with random weights, asked about images (k, 3, H, W) of 0…1; differentiable in them."""

    def __init__(self, size: Size, device: str, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.side = size.image
        config = qwen(size)
        reward_id = config.text_config.vocab_size - 1
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)  # 7 B parameters are made where and as they are used
        try:
            with torch.device(device):
                self.network = HPSv3Network(Qwen2VLModel(config), reward_id).eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(before)
        image = [config.image_token_id] * (size.image // (PATCH_SIDE * MERGE_SIDE)) ** 2
        text = torch.arange(10, 10 + size.text).tolist()
        self.ids = torch.tensor([*text[:14], *image, *text[14:-11], reward_id, *text[-10:]], device=device)

    def __call__(self, images: Tensor) -> Tensor:
        """μ of each image, (k,)."""
        fitted = nn.functional.interpolate(images, (self.side, self.side), mode="bicubic", antialias=True)
        pixels = torch.cat([extract_patches(image) for image in normalize_pixels(fitted)])
        count = len(images)
        grids = torch.tensor([[1, self.side // PATCH_SIDE, self.side // PATCH_SIDE]] * count, device=images.device)
        ids = self.ids.expand(count, -1)
        scores: Tensor = self.network(HPSv3Batch(ids, torch.ones_like(ids), pixels, grids))
        return scores[:, 0]


def qwen(size: Size) -> Any:
    """Qwen2-VL-7B's configuration with its widths divided, and its heads so that each stays about as wide."""
    width, (queries, keys, vision) = 3584 // size.divided, size.heads
    eighth = width // queries // 8  # the published positions take 16, 24, 24 of a head's 64 pairs
    return Qwen2VLConfig(
        text_config={
            "vocab_size": 151658 // size.divided, "hidden_size": width, "intermediate_size": 18944 // size.divided,
            "num_hidden_layers": 28, "num_attention_heads": queries, "num_key_value_heads": keys, "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e6, "mrope_section": [eighth, eighth * 3 // 2, eighth * 3 // 2],
            },
            "bos_token_id": None, "eos_token_id": None,
        },
        vision_config={"embed_dim": 1280 // size.divided, "hidden_size": width, "num_heads": vision},
        image_token_id=1, video_token_id=2, vision_start_token_id=3, vision_end_token_id=4,
    )  # fmt: skip
