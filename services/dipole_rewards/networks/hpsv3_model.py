"""HPSv3's network and what it is fed: Qwen2-VL with a small head that is read at an added token.

    image → about 448×448 → patches of 14×14 ────────────────────── vision tower ─┐
    chat( <|image_pad|>… + instruction with the prompt + <|Reward|> …) ─ language model
                          hidden state at <|Reward|> ─ d → 1024 → ReLU → 16 → ReLU → (μ, spread)

Facts of MizzenAI/HPSv3 (arXiv 2508.03789) that its scores depend on and that are easily lost:
- Positions count 1, 2, 3 … over text and image alike. The published model calls Qwen2-VL's language model without
  positions, so that the grid of its image never enters the rotary embedding, in training as in use.
- Sides are floored in floating point: an image of 768² becomes 420², one of 512² or 1024² 448².
- The instruction's white space counts: its SHA-256 is checked (hpsv3_files.py).

Legend: B images, T tokens, N patches of an image, d the language model's width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import Qwen2VLModel

from dipole_rewards.networks.batches import ImageInGroup, MicroBatches
from dipole_rewards.networks.preprocessing import normalize_pixels
from dipole_rewards.reward import Pixels

REWARD_TOKEN, IMAGE_TOKEN = "<|Reward|>", "<|image_pad|>"
TARGET_PIXELS = 256 * 28 * 28  # of a resized image, about
PATCH_SIDE, MERGE_SIDE = 14, 2  # pixels of a patch's side; 2×2 patches make one token of the language model
TEMPORAL_FRAMES = 2  # Qwen2-VL's patches are of two video frames; a still image is its own second frame


# ---- images ---------------------------------------------------------------------------------------------------------


def smart_resize_shape(height: int, width: int) -> tuple[int, int]:
    """(height, width) that an image is resized to: multiples of 28 whose product is about 256·28².

    The order of the floating-point operations is the published one: another order floors other sizes down.
    """
    unit = PATCH_SIDE * MERGE_SIDE
    rounded = [max(unit, round(side / unit) * unit) for side in (height, width)]
    area = rounded[0] * rounded[1]
    if area > TARGET_PIXELS:
        shrink = math.sqrt((height * width) / TARGET_PIXELS)
        rounded = [math.floor(side / shrink / unit) * unit for side in (height, width)]
    elif area < TARGET_PIXELS:
        grow = math.sqrt(TARGET_PIXELS / (height * width))
        rounded = [math.ceil(side * grow / unit) * unit for side in (height, width)]
    return rounded[0], rounded[1]


def resize_and_normalize(image: Pixels) -> Tensor:
    """An image (H, W, 3) in Qwen2-VL's size and CLIP's normalisation, (3, h, w) float32."""
    height, width = smart_resize_shape(*image.shape[:2])
    bicubic = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    return normalize_pixels(torch.from_numpy(np.array(bicubic)).permute(2, 0, 1).float() / 255)


def extract_patches(image: Tensor) -> Tensor:
    """(3, h, w) as (N, 3·2·14·14), the patches of each 2×2 block together; differentiable."""
    rows, columns = (side // (PATCH_SIDE * MERGE_SIDE) for side in image.shape[1:])
    blocks = image.reshape(3, rows, MERGE_SIDE, PATCH_SIDE, columns, MERGE_SIDE, PATCH_SIDE).permute(
        1, 4, 2, 5, 0, 3, 6
    )
    frames = blocks.unsqueeze(5).expand(-1, -1, -1, -1, -1, TEMPORAL_FRAMES, -1, -1)
    return frames.reshape(rows * columns * MERGE_SIDE**2, -1)


# ---- words ----------------------------------------------------------------------------------------------------------


class QuestionTokenizer:
    """Tokens of the question that the network is asked about one image and its prompt."""

    def __init__(self, tokenizer: Any, instruction: str) -> None:
        """`instruction` holds {text_prompt} and <|Reward|> once each. Adds that token to the tokenizer."""
        self.tokenizer, self.instruction = tokenizer, instruction
        tokenizer.add_tokens([REWARD_TOKEN], special_tokens=True)
        self.reward_id, self.image_id = (tokenizer.convert_tokens_to_ids(t) for t in (REWARD_TOKEN, IMAGE_TOKEN))
        self.pad_id: int = tokenizer.pad_token_id

    def tokenize(self, prompt: str, image_tokens: int) -> list[int]:
        """Chat template with the image first; a special token inside the prompt is content and loses its meaning."""
        text = self.instruction.replace("{text_prompt}", prompt.replace("<|", "< |"))
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
        chat = self.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        found: list[int] = self.tokenizer(chat, add_special_tokens=False).input_ids
        at = found.index(self.image_id)
        return found[:at] + [self.image_id] * image_tokens + found[at + 1 :]


@dataclass(frozen=True)
class HPSv3Batch:
    """What one forward pass takes."""

    ids: Tensor  # (B, T), padded on the right
    mask: Tensor  # (B, T), 1 where there is a token
    patches: Tensor  # (ΣN, 1176)
    grids: Tensor  # (B, 3): frames, rows and columns of patches

    @classmethod
    def from_images(cls, images: Sequence[Tensor], prompts: Sequence[str], words: QuestionTokenizer) -> HPSv3Batch:
        """Resized, normalised images (3, h, w), each with its prompt, on the images' device; differentiable in them."""
        device = images[0].device
        grids = [[1, image.shape[1] // PATCH_SIDE, image.shape[2] // PATCH_SIDE] for image in images]
        questions = [(prompt, h * w // MERGE_SIDE**2) for prompt, (_, h, w) in zip(prompts, grids, strict=True)]
        known = {question: torch.tensor(words.tokenize(*question)) for question in set(questions)}
        rows = [known[question] for question in questions]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=words.pad_id)
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        pixels = torch.cat([extract_patches(image) for image in images])
        return cls(ids.to(device), mask.to(device), pixels, torch.tensor(grids, device=device))


# ---- the network ----------------------------------------------------------------------------------------------------


class HPSv3Network(nn.Module):
    """Qwen2-VL without its vocabulary's head, and the head that scores, which is always float32."""

    def __init__(self, qwen: Qwen2VLModel, reward_id: int) -> None:
        super().__init__()
        self.qwen, self.reward_id = qwen, reward_id
        width = qwen.language_model.config.hidden_size
        self.rm_head = nn.Sequential(
            nn.Linear(width, 1024), nn.ReLU(), nn.Dropout(0.05),
            nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2),
        ).float()  # fmt: skip

    def forward(self, batch: HPSv3Batch) -> Tensor:
        """(B, 2): μ, the score, and the raw spread."""
        count, length = batch.ids.shape
        positions = torch.arange(length, device=batch.ids.device).expand(3, count, length)
        hidden = self.qwen(
            input_ids=batch.ids, attention_mask=batch.mask, position_ids=positions, use_cache=False,
            pixel_values=batch.patches.to(self.qwen.dtype), image_grid_thw=batch.grids,
        ).last_hidden_state  # fmt: skip
        at = (batch.ids == self.reward_id).nonzero()  # (B, 2)
        assert len(at) == count, "every row has the reward token once"
        scores: Tensor = self.rm_head(hidden[at[:, 0], at[:, 1]].float())
        return scores


class HPSv3Scorer:
    """μ of each image for its prompt, all at once where memory allows."""

    def __init__(self, network: HPSv3Network, words: QuestionTokenizer) -> None:
        self.network, self.tokenizer, self.micro_batches = network, words, MicroBatches("hpsv3", batch=32)

    @torch.inference_mode()
    def __call__(self, asked: Sequence[ImageInGroup]) -> list[float]:
        return self.micro_batches(asked, self._score_batch)

    def _score_batch(self, asked: Sequence[ImageInGroup]) -> list[float]:
        device = self.network.qwen.device
        images = [resize_and_normalize(one.image).to(device) for one in asked]
        batch = HPSv3Batch.from_images(images, [one.group.prompt for one in asked], self.tokenizer)
        means: list[float] = self.network(batch)[:, 0].tolist()
        return means
