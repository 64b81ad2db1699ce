"""ImageReward's network and its files: BLIP, whose text tower looks at the image, with a head that gives one number.

    image ─ patches of 16×16 ─ ViT-L ──────────────────────┐ keys and values
    [CLS] prompt [SEP] [PAD] … ─ BERT, in each layer attending to itself, then to the image
                             state at [CLS] ─ 768 → 1024 → 128 → 64 → 16 → 1, and no activations between

Facts of the published package (arXiv 2304.05977) that its scores depend on and that are easily lost:
- ε is 1e-6 in the vision tower's norms, where transformers' BLIP has 1e-5.
- The text begins with [CLS]. BLIP's own matching of image and text puts its [ENC] there; ImageReward does not.
- `is_decoder` in transformers' configuration only gives the layers their attention to the image: no word is hidden
  from those before it.
- `encoder_width` in med_config.json is that of BLIP's smaller vision tower; the checkpoint's own is 1024.
- The crop is torchvision's, which rounds half a pixel to the even side.

Legend: B images, N patches and one more, T tokens, D features.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ValidationError
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from dipole.errors import ConfigurationError
from dipole.protocol.validation import first_error
from dipole_rewards.networks.preprocessing import normalize_pixels
from dipole_rewards.networks.weight_files import DTYPES, load_exactly
from dipole_rewards.reward import Pixels
from dipole_rewards.settings import WeightSettings

MAX_TEXT_TOKENS = 35  # of a prompt, with [CLS] and [SEP]
ADDED_TOKENS = ("[DEC]", "[ENC]")  # BLIP's, behind BERT's vocabulary
ATTENTION_HEAD_WIDTH = 64  # features of an attention head in every ViT of BLIP


def crop_center(image: Pixels, side: int) -> Tensor:
    """An image (H, W, 3) with its shortest side resized to `side`, and of that the middle, (3, side, side)."""
    height, width = image.shape[:2]
    short = min(height, width)
    height, width = (side if edge == short else int(side * edge / short) for edge in (height, width))
    bicubic = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    top, left = round((height - side) / 2), round((width - side) / 2)
    middle = bicubic[top : top + side, left : left + side]
    return normalize_pixels(torch.from_numpy(middle).permute(2, 0, 1).float() / 255)


# ---- the network ----------------------------------------------------------------------------------------------------


class BlipTextTower(BlipTextModel):  # type: ignore[no-untyped-call]
    """Without the pooling layer, which the checkpoint has not."""

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__(config, add_pooling_layer=False)


class ImageRewardNetwork(nn.Module):
    """The towers may be bfloat16, the head is float32 as it was published."""

    def __init__(self, vision: BlipVisionModel, text: BlipTextTower) -> None:
        super().__init__()
        self.vision, self.text = vision, text
        shapes: Any = (vision.config, text.config)
        self.side: int = shapes[0].image_size
        self.head = nn.Sequential(
            nn.Linear(shapes[1].hidden_size, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2),
            nn.Linear(128, 64), nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1),
        )  # fmt: skip

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Pixels (B, 3, side, side), token ids and their mask (B, T), 1 where there is a token → (B,)"""
        seen = self.vision(pixel_values=pixels.to(self.vision.dtype)).last_hidden_state  # (B, N, D)
        # (B, T, D)
        read = self.text(input_ids=ids, attention_mask=mask, encoder_hidden_states=seen).last_hidden_state
        scores: Tensor = self.head(read[:, 0].float())[:, 0]
        return scores


def load_imagereward_network(
    state: Mapping[str, Tensor], settings: WeightSettings, device: str, *, weights: Path, config: Path
) -> ImageRewardNetwork:
    """The network with these tensors, which are those of `weights`; `config` is med_config.json.

    Raises ConfigurationError where a tensor is missing, left over or misshapen.
    """
    shape, dtype = _read_text_shape(config), DTYPES[settings.reward_dtype]
    try:
        parts = _split_parts(state)
        vision = load_exactly(BlipVisionModel, _infer_vision_config(parts["vision"]), parts["vision"], dtype)
        width: int = vision.config.hidden_size
        text_config = BlipTextConfig(
            **shape.model_dump(), encoder_hidden_size=width, is_decoder=True, bos_token_id=None
        )
        network = ImageRewardNetwork(vision, load_exactly(BlipTextTower, text_config, parts["text"], dtype))
        network.head.load_state_dict(parts["head"])
    except (RuntimeError, ValueError) as error:
        # ValueError: heads that do not divide the width
        raise ConfigurationError(f"{weights} is not ImageReward as {config} describes it: {error}") from error
    return network.eval().requires_grad_(False).to(device)


class BlipTextShape(BaseModel):
    """What counts of med_config.json, a configuration of BERT's; its dropouts do nothing here."""

    hidden_act: Literal["gelu"]
    hidden_size: int
    intermediate_size: int
    layer_norm_eps: float
    max_position_embeddings: int
    num_attention_heads: int
    num_hidden_layers: int
    vocab_size: int


def _read_text_shape(config: Path) -> BlipTextShape:
    try:
        return BlipTextShape.model_validate_json(config.read_bytes())
    except ValidationError as error:
        raise ConfigurationError(f"{config} is not ImageReward's: {first_error(error).sentence}") from error


def _infer_vision_config(state: Mapping[str, Tensor]) -> BlipVisionConfig:
    """No file describes the vision tower; its tensors do. Raises RuntimeError where they cannot."""
    patches, positions = state["embeddings.patch_embedding.weight"], state["embeddings.position_embedding"]
    width, patch = patches.shape[0], patches.shape[-1]
    if width % ATTENTION_HEAD_WIDTH:
        raise RuntimeError(f"{width} features are no number of heads of {ATTENTION_HEAD_WIDTH}")
    layers = {name.split(".")[2] for name in state if name.startswith("encoder.layers.")}
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=len(state["encoder.layers.0.mlp.fc1.bias"]),
        num_hidden_layers=len(layers),
        num_attention_heads=width // ATTENTION_HEAD_WIDTH,
        image_size=patch * math.isqrt(positions.shape[1] - 1),
        patch_size=patch,
        layer_norm_eps=1e-6,
    )


# ---- names of weights -----------------------------------------------------------------------------------------------

_PART_PREFIXES = {"blip.visual_encoder.": "vision", "blip.text_encoder.": "text", "mlp.layers.": "head"}
_UNUSED_NAMES = re.compile(  # BLIP's projections for comparing image and text, and a counter 0, 1, 2 … once stored
    r"^blip\.((vision|text)_proj\.(weight|bias)|text_encoder\.embeddings\.position_ids)$"
)
_VISION_NAMES = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.", "encoder.layers."),
    (r"\.norm([12])\.", r".layer_norm\1."),
    (r"\.attn\.qkv\.", ".self_attn.qkv."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
)
_SHAPE_DEFINING = {  # of the vision tower's shape, by their dimensions
    "embeddings.patch_embedding.weight": 4, "embeddings.position_embedding": 3, "encoder.layers.0.mlp.fc1.bias": 1,
}  # fmt: skip


def _split_parts(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The checkpoint's tensors by part, with transformers' names. The text tower's are the same in both.

    Raises RuntimeError for a name that is of no part, or a tensor without which the shape is not known.
    """
    found: dict[str, dict[str, Tensor]] = {part: {} for part in _PART_PREFIXES.values()}
    for name, tensor in state.items():
        if _UNUSED_NAMES.match(name):
            continue
        prefix = next((prefix for prefix in _PART_PREFIXES if name.startswith(prefix)), None)
        if prefix is None:
            raise RuntimeError(f"unexpected {name}")
        own = name.removeprefix(prefix)
        for pattern, replacement in _VISION_NAMES if _PART_PREFIXES[prefix] == "vision" else ():
            own = re.sub(pattern, replacement, own)
        found[_PART_PREFIXES[prefix]][own] = tensor
    for name, dimensions in _SHAPE_DEFINING.items():
        if name not in found["vision"] or found["vision"][name].ndim != dimensions:
            raise RuntimeError(f"missing or misshapen {name}")
    return found


# ---- words ----------------------------------------------------------------------------------------------------------


class BertPromptTokenizer:
    """BERT's tokenizer, set to 35 tokens; whatever a prompt says is content, "[SEP]" included."""

    def __init__(self, tokenizer: Tokenizer, padding: int) -> None:
        self.tokenizer = tokenizer
        tokenizer.encode_special_tokens = True  # which means: as ordinary text
        tokenizer.enable_truncation(MAX_TEXT_TOKENS)
        tokenizer.enable_padding(length=MAX_TEXT_TOKENS, pad_id=padding)

    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask, (B, T) each. A prompt beyond 35 tokens loses its last words."""
        encoded = self.tokenizer.encode_batch(list(prompts))
        return torch.tensor([one.ids for one in encoded]), torch.tensor([one.attention_mask for one in encoded])


def load_prompt_tokenizer(path: Path, config: Path) -> BertPromptTokenizer:
    """The tokenizer of bert-base-uncased. Raises ConfigurationError unless it has the tokens that `config` counts."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        # tokenizers has no narrower one
        raise ConfigurationError(f"{path} cannot be read as a tokenizer: {error}") from error
    tokenizer.add_special_tokens(list(ADDED_TOKENS))
    tokens, known, padding = (
        tokenizer.get_vocab_size(),
        _read_text_shape(config).vocab_size,
        tokenizer.token_to_id("[PAD]"),
    )
    if tokens != known or padding is None:
        raise ConfigurationError(
            f"{path} has {tokens} tokens with {' and '.join(ADDED_TOKENS)}, and {config} says {known}: "
            "it must be that of bert-base-uncased"
        )
    return BertPromptTokenizer(tokenizer, padding)
