"""Files of `clip`, `pickscore`, `aesthetic` and `hpsv2`: CLIP's towers in the layout that each was published in."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from dipole_rewards.rewards import aesthetic, hpsv2

IMAGE_SIDE, PATCH_SIDE = 32, 8
BIAS_STD = 0.1  # deviation of what is zero when fresh


def write_clip(folder: Path, *, activation: str = "quick_gelu") -> None:
    """model.safetensors, config.json and the tokenizer's files, as openai/clip-vit-large-patch14 has them."""
    vocabulary = write_clip_tokenizer(folder)
    config = make_clip_config(vocabulary, activation)
    (folder / "config.json").write_text(json.dumps(config))
    model: Any = CLIPModel(CLIPConfig.from_dict(config))
    state = {name: value.contiguous() for name, value in _amplify_weights(model.state_dict()).items()}
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]  # older checkpoints hold what is no weight
    state["logit_scale"] = torch.tensor(math.log(100))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})  # as published files say


def make_clip_config(vocabulary: int, activation: str) -> dict[str, Any]:
    """As on the hub, where start and end have ids that are not the tokenizer's. 768 is what LAION's head takes."""
    layers = {"num_hidden_layers": 2, "hidden_act": activation, "layer_norm_eps": 1e-5, "projection_dim": 768}
    ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "vocab_size": vocabulary}
    text = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "max_position_embeddings": 77, **ids}
    vision = {
        "hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4, "image_size": IMAGE_SIDE,
        "patch_size": PATCH_SIDE,
    }  # fmt: skip
    return {
        "model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": 768, "torch_dtype": "float32",
        "logit_scale_init_value": 2.6592, "text_config": {**text, **layers}, "vision_config": {**vision, **layers},
    }  # fmt: skip


def write_clip_tokenizer(folder: Path) -> int:
    """Bytes, bytes that end a word, start and end: 514 tokens."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[])
    tokenizer.save_pretrained(folder)
    return len(tokens)


def write_aesthetic(folder: Path) -> None:
    """The aesthetic predictor's CLIP and its head."""
    write_clip(folder)
    state = {}
    for layer, (inputs, outputs) in {0: (768, 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16), 7: (16, 1)}.items():
        state[f"layers.{layer}.weight"] = torch.randn(outputs, inputs) * (2 / inputs) ** 0.5
        state[f"layers.{layer}.bias"] = torch.randn(outputs) * BIAS_STD
    torch.save(state, folder / aesthetic.HEAD_FILE)


def write_open_clip(folder: Path) -> None:
    """HPSv2's checkpoint with open_clip's names, and the configuration of the same network in transformers' format."""
    config = make_clip_config(write_clip_tokenizer(folder), "gelu")
    (folder / "config.json").write_text(json.dumps(config))
    text, vision = config["text_config"], config["vision_config"]
    state = {
        "logit_scale": torch.tensor(math.log(100)),
        "token_embedding.weight": torch.randn(text["vocab_size"], text["hidden_size"]),
        "positional_embedding": torch.randn(77, text["hidden_size"]),
        "text_projection": torch.randn(text["hidden_size"], 768),
        "visual.class_embedding": torch.randn(vision["hidden_size"]),
        "visual.positional_embedding": torch.randn((IMAGE_SIDE // PATCH_SIDE) ** 2 + 1, vision["hidden_size"]),
        "visual.proj": torch.randn(vision["hidden_size"], 768),
        "visual.conv1.weight": torch.randn(vision["hidden_size"], 3, PATCH_SIDE, PATCH_SIDE) / PATCH_SIDE,
    }
    norms = {"visual.ln_pre": vision, "visual.ln_post": vision, "ln_final": text}
    for prefix, tower in {"": text, "visual.": vision}.items():
        for layer in range(tower["num_hidden_layers"]):
            block = f"{prefix}transformer.resblocks.{layer}"
            norms |= {f"{block}.ln_1": tower, f"{block}.ln_2": tower}
            state |= dict(_open_clip_layer_tensors(block, tower["hidden_size"], tower["intermediate_size"]))
    for name, tower in norms.items():
        state[f"{name}.weight"] = 1 + BIAS_STD * torch.randn(tower["hidden_size"])
        state[f"{name}.bias"] = BIAS_STD * torch.randn(tower["hidden_size"])
    torch.save({"state_dict": state}, folder / hpsv2.WEIGHTS_FILE)


def _open_clip_layer_tensors(block: str, width: int, inner: int) -> Iterator[tuple[str, Tensor]]:
    yield f"{block}.attn.in_proj_weight", torch.randn(3 * width, width) / width**0.5
    yield f"{block}.attn.in_proj_bias", torch.randn(3 * width) * BIAS_STD
    for name, (inputs, outputs) in {
        "attn.out_proj": (width, width), "mlp.c_fc": (width, inner), "mlp.c_proj": (inner, width),
    }.items():  # fmt: skip
        yield f"{block}.{name}.weight", torch.randn(outputs, inputs) / inputs**0.5
        yield f"{block}.{name}.bias", torch.randn(outputs) * BIAS_STD


def _amplify_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fresh weights are so small that every image and every prompt would look the same, and biases are zero."""
    found = {}
    for name, value in state.items():
        if value.ndim == 1 and "norm" not in name and "embedding" not in name:
            found[name] = torch.randn_like(value) * BIAS_STD
        elif value.ndim > 1:
            inputs = 1 if name.endswith(("token_embedding.weight", "position_embedding.weight")) else value[0].numel()
            found[name] = torch.randn_like(value) / inputs**0.5
        else:
            found[name] = value
    return found
