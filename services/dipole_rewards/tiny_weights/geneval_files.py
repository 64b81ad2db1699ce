"""Files of `geneval`: Mask2Former with a Swin backbone as the hub has it, and CLIP, in a folder each."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation
from transformers.utils import logging as transformers_logging

from dipole_rewards.geneval.scoring import CLASSES
from dipole_rewards.tiny_weights.clip_files import BIAS_STD, write_clip

SWIN_CONFIG = {
    "model_type": "swin", "image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2], "window_size": 7, "drop_path_rate": 0.3,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}  # fmt: skip
MASK2FORMER_CONFIG = {
    "model_type": "mask2former", "backbone_config": SWIN_CONFIG, "feature_size": 32, "mask_feature_size": 32,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 32, "dim_feedforward": 32, "encoder_layers": 1, "decoder_layers": 3,
    "num_attention_heads": 2, "num_queries": 24, "id2label": {str(index): name for index, name in enumerate(CLASSES)},
}  # fmt: skip
GAINS = {  # or nothing is confident, and every query sees the same
    "class_predictor.weight": 1.5, "queries_embedder": 2.0, "queries_features": 2.0, "cross_attn.in_proj_weight": 2.0,
    "mask_embedder.2.0.weight": 4.0,
}  # fmt: skip
# or a class that somebody asks for is hardly ever found
FREQUENT_CLASSES = ("stop sign", "dog", "car", "bench")
# times what the queries give, these are the masks
PIXEL_PROJECTION = "model.pixel_level_module.decoder.mask_projection"
QUERY_PREDICTOR = "model.transformer_module.decoder.mask_predictor.mask_embedder.2.0"
MASK_BIAS = 0.5  # or every mask covers half of the pixels


def write_geneval(folder: Path) -> None:
    """detector/ and clip/."""
    for name, write in (("detector", write_mask2former), ("clip", write_clip)):
        (folder / name).mkdir(exist_ok=True)
        write(folder / name)


def write_mask2former(folder: Path) -> None:
    """With the names that the hub's files have, which are of an older transformers, and what it stored beside them."""
    model: Any = Mask2FormerForUniversalSegmentation(Mask2FormerConfig.from_dict(MASK2FORMER_CONFIG))
    lively = {name: _amplify_weight(name, value) for name, value in model.state_dict().items()}
    lively["class_predictor.bias"][[CLASSES.index(name) for name in FREQUENT_CLASSES]] += 5
    lively[f"{PIXEL_PROJECTION}.bias"] += MASK_BIAS
    lively[f"{QUERY_PREDICTOR}.bias"] -= MASK_BIAS
    model.load_state_dict(lively)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(MASK2FORMER_CONFIG))
    state = {name: value for name, value in load_file(folder / "model.safetensors").items() if ".swin." not in name}
    for name in [name for name in state if name.endswith("relative_position_bias_table")]:
        state[name.replace("bias_table", "index")] = torch.zeros(49, 49, dtype=torch.int64)
    save_file(state, folder / "model.safetensors")


def _amplify_weight(name: str, value: Tensor) -> Tensor:
    """Larger weights than the default initialisation, with which outputs would not depend on the image."""
    if value.ndim == 1:
        norm = "norm" in name or name.startswith("criterion") or ".adapter_1.1." in name or ".layer_1.1." in name
        return value if norm else torch.randn_like(value) * BIAS_STD
    alone = "queries" in name or "level_embed" in name or "bias_table" in name
    inputs: int = 1 if alone else value[0].numel()
    gain = next((gain for part, gain in GAINS.items() if part in name), 1.0)
    return torch.randn_like(value) * (gain / math.sqrt(inputs))
