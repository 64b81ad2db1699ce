"""Files of `hpsv3`: Qwen2-VL with the reward head, and an instruction of its own; TinyHPSv3 serves them."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import Qwen2Tokenizer, Qwen2VLConfig
from transformers import Qwen2VLForConditionalGeneration as Qwen2VL

from dipole_rewards.rewards.hpsv3 import HPSv3
from dipole_rewards.tiny_weights.clip_files import BIAS_STD

TINY_INSTRUCTION = "\nHow good is it? \nPrompt - {text_prompt}\n\nRating: <|Reward|>\n\nEND\n"
SPECIAL_TOKENS = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
CHAT_TEMPLATE = (
    "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n{% for part in messages[0].content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_CONFIG = {  # flat and with the old names, as the hub's Qwen2-VL-7B-Instruct has it
    "model_type": "qwen2_vl", "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "hidden_act": "silu",
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}, "tie_word_embeddings": False,
    "bos_token_id": 256, "eos_token_id": 258, "image_token_id": 261, "video_token_id": 262,
    "vision_start_token_id": 259, "vision_end_token_id": 260,
    "vision_config": {
        "depth": 2, "embed_dim": 32, "mlp_ratio": 4, "num_heads": 2, "in_chans": 3, "hidden_size": 64, "patch_size": 14,
        "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2,
    },
}  # fmt: skip


def write_hpsv3(folder: Path) -> None:
    """HPSv3.safetensors with its configuration, its tokenizer (bytes, then special tokens) and an instruction."""
    vocabulary = {token: index for index, token in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer: Any = Qwen2Tokenizer(vocab=vocabulary, merges=[])
    tokenizer.add_tokens(SPECIAL_TOKENS, special_tokens=True)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    save_file(make_hpsv3_state(), folder / "HPSv3.safetensors")
    (folder / "config.json").write_text(json.dumps(QWEN_CONFIG))
    (folder / "instruction.txt").write_text(TINY_INSTRUCTION)


def make_hpsv3_state() -> dict[str, Tensor]:
    """Qwen2-VL with its vocabulary's head, embeddings of one token more than the tokenizer has, and the head."""
    model: Any = Qwen2VL(Qwen2VLConfig.from_dict({**QWEN_CONFIG, "vocab_size": 264}))
    state = dict(model.state_dict())
    for name, value in state.items():
        if value.ndim == 1 and "norm" not in name and "ln_q" not in name:
            state[name] = torch.randn_like(value) * BIAS_STD
        elif "language_model" in name and value.ndim == 2:
            state[name] = value * 8  # or attention is so flat that nothing depends on positions
    for layer, (outputs, inputs) in {0: (1024, 64), 3: (16, 1024), 5: (2, 16)}.items():
        state[f"rm_head.{layer}.weight"] = torch.randn(outputs, inputs) / math.sqrt(inputs)
        state[f"rm_head.{layer}.bias"] = torch.randn(outputs)
    return {name: value.contiguous() for name, value in state.items()}


class TinyHPSv3(HPSv3):
    """HPSv3 with the tiny weights' instruction."""

    instruction_sha256 = hashlib.sha256(TINY_INSTRUCTION.encode()).hexdigest()
