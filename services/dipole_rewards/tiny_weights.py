"""Tiny random weights in the published layouts, for trying out and testing rewards without the real ones.

One folder a reward, in seconds, with a golden.json of what these weights give: it tells that they load and compute as
they did, and nothing about images. `scripts/tiny-weights` writes them; TinyHPSv3 serves `hpsv3`'s, because HPSv3 itself
insists on the published instruction.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, Qwen2Tokenizer, Qwen2VLConfig
from transformers import Qwen2VLForConditionalGeneration as Qwen2VL

from dipole_rewards.rewards import aesthetic, hpsv2, hpsv3_files
from dipole_rewards.rewards.aesthetic import Aesthetic
from dipole_rewards.rewards.clip import Clip
from dipole_rewards.rewards.clip_reward import ClipReward
from dipole_rewards.rewards.hpsv2 import HPSv2
from dipole_rewards.rewards.hpsv3 import HPSv3
from dipole_rewards.rewards.hpsv3_model import Scorer
from dipole_rewards.rewards.pickscore import PickScore
from dipole_rewards.settings import WeightSettings

SIDE, PATCH = 32, 8
BIASES = 0.1  # deviation of what is zero when fresh


def write(folder: Path, reward: str, *, seed: int = 0) -> Path:
    """Write the weights of `reward`, a key of REWARDS, to `folder`; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    files, kind = REWARDS[reward]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        files(folder)
    golden = folder / "golden.json"
    golden.write_text('{"score": 0}')
    opened = kind.open(WeightSettings(reward_weights=folder, reward_dtype="fp32"), "cpu")
    known = opened.golden()
    (score,) = opened.score(prompt=known.prompt, images=[known.image], metadata=None).scores
    golden.write_text(json.dumps({"score": score}))
    return folder


# ---- CLIP -----------------------------------------------------------------------------------------------------------


def clip(folder: Path, *, activation: str = "quick_gelu") -> None:
    """model.safetensors, config.json and the tokenizer's files, as openai/clip-vit-large-patch14 has them."""
    vocabulary = clip_tokenizer(folder)
    config = clip_config(vocabulary, activation)
    (folder / "config.json").write_text(json.dumps(config))
    model: Any = CLIPModel(CLIPConfig.from_dict(config))
    state = {name: value.contiguous() for name, value in _lively(model.state_dict()).items()}
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]  # older checkpoints hold what is no weight
    state["logit_scale"] = torch.tensor(math.log(100))
    save_file(state, folder / "model.safetensors")


def clip_config(vocabulary: int, activation: str) -> dict[str, Any]:
    """As on the hub, where start and end have ids that are not the tokenizer's. 768 is what LAION's head takes."""
    layers = {"num_hidden_layers": 2, "hidden_act": activation, "layer_norm_eps": 1e-5, "projection_dim": 768}
    ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "vocab_size": vocabulary}
    text = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "max_position_embeddings": 77, **ids}
    vision = {
        "hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4, "image_size": SIDE, "patch_size": PATCH,
    }  # fmt: skip
    return {
        "model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": 768, "torch_dtype": "float32",
        "logit_scale_init_value": 2.6592, "text_config": {**text, **layers}, "vision_config": {**vision, **layers},
    }  # fmt: skip


def clip_tokenizer(folder: Path) -> int:
    """Bytes, bytes that end a word, start and end: 514 tokens."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[])
    tokenizer.save_pretrained(folder)
    return len(tokens)


def linear_head(folder: Path) -> None:
    """The aesthetic predictor's CLIP and its head."""
    clip(folder)
    state = {}
    for layer, (inputs, outputs) in {0: (768, 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16), 7: (16, 1)}.items():
        state[f"layers.{layer}.weight"] = torch.randn(outputs, inputs) * (2 / inputs) ** 0.5
        state[f"layers.{layer}.bias"] = torch.randn(outputs) * BIASES
    torch.save(state, folder / aesthetic.HEAD)


def open_clip(folder: Path) -> None:
    """HPSv2's checkpoint with open_clip's names, and the configuration of the same network in transformers' format."""
    config = clip_config(clip_tokenizer(folder), "gelu")
    (folder / "config.json").write_text(json.dumps(config))
    text, vision = config["text_config"], config["vision_config"]
    state = {
        "logit_scale": torch.tensor(math.log(100)),
        "token_embedding.weight": torch.randn(text["vocab_size"], text["hidden_size"]),
        "positional_embedding": torch.randn(77, text["hidden_size"]),
        "text_projection": torch.randn(text["hidden_size"], 768),
        "visual.class_embedding": torch.randn(vision["hidden_size"]),
        "visual.positional_embedding": torch.randn((SIDE // PATCH) ** 2 + 1, vision["hidden_size"]),
        "visual.proj": torch.randn(vision["hidden_size"], 768),
        "visual.conv1.weight": torch.randn(vision["hidden_size"], 3, PATCH, PATCH) / PATCH,
    }
    norms = {"visual.ln_pre": vision, "visual.ln_post": vision, "ln_final": text}
    for prefix, tower in {"": text, "visual.": vision}.items():
        for layer in range(tower["num_hidden_layers"]):
            block = f"{prefix}transformer.resblocks.{layer}"
            norms |= {f"{block}.ln_1": tower, f"{block}.ln_2": tower}
            state |= dict(_open_clip_layer(block, tower["hidden_size"], tower["intermediate_size"]))
    for name, tower in norms.items():
        state[f"{name}.weight"] = 1 + BIASES * torch.randn(tower["hidden_size"])
        state[f"{name}.bias"] = BIASES * torch.randn(tower["hidden_size"])
    torch.save({"state_dict": state}, folder / hpsv2.FILE)


def _open_clip_layer(block: str, width: int, inner: int) -> Iterator[tuple[str, Tensor]]:
    yield f"{block}.attn.in_proj_weight", torch.randn(3 * width, width) / width**0.5
    yield f"{block}.attn.in_proj_bias", torch.randn(3 * width) * BIASES
    for name, (inputs, outputs) in {
        "attn.out_proj": (width, width), "mlp.c_fc": (width, inner), "mlp.c_proj": (inner, width),
    }.items():  # fmt: skip
        yield f"{block}.{name}.weight", torch.randn(outputs, inputs) / inputs**0.5
        yield f"{block}.{name}.bias", torch.randn(outputs) * BIASES


def _lively(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fresh weights are so small that every image and every prompt would look the same, and biases are zero."""
    found = {}
    for name, value in state.items():
        if value.ndim == 1 and "norm" not in name and "embedding" not in name:
            found[name] = torch.randn_like(value) * BIASES
        elif value.ndim > 1:
            inputs = 1 if name.endswith(("token_embedding.weight", "position_embedding.weight")) else value[0].numel()
            found[name] = torch.randn_like(value) / inputs**0.5
        else:
            found[name] = value
    return found


# ---- HPSv3 ----------------------------------------------------------------------------------------------------------

INSTRUCTION = "\nHow good is it? \nPrompt - {text_prompt}\n\nRating: <|Reward|>\n\nEND\n"
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
CHAT = (
    "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n{% for part in messages[0].content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN = {  # flat and with the old names, as the hub's Qwen2-VL-7B-Instruct has it
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


def hpsv3(folder: Path) -> None:
    """HPSv3.safetensors with its configuration, its tokenizer (bytes, then special tokens) and an instruction."""
    vocabulary = {token: index for index, token in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer: Any = Qwen2Tokenizer(vocab=vocabulary, merges=[])
    tokenizer.add_tokens(SPECIAL, special_tokens=True)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    save_file(hpsv3_state(), folder / "HPSv3.safetensors")
    (folder / "config.json").write_text(json.dumps(QWEN))
    (folder / "instruction.txt").write_text(INSTRUCTION)


def hpsv3_state() -> dict[str, Tensor]:
    """Qwen2-VL with its vocabulary's head, embeddings of one token more than the tokenizer has, and the head."""
    model: Any = Qwen2VL(Qwen2VLConfig.from_dict({**QWEN, "vocab_size": 264}))
    state = dict(model.state_dict())
    for name, value in state.items():
        if value.ndim == 1 and "norm" not in name and "ln_q" not in name:
            state[name] = torch.randn_like(value) * BIASES
        elif "language_model" in name and value.ndim == 2:
            state[name] = value * 8  # or attention is so flat that nothing depends on positions
    for layer, (outputs, inputs) in {0: (1024, 64), 3: (16, 1024), 5: (2, 16)}.items():
        state[f"rm_head.{layer}.weight"] = torch.randn(outputs, inputs) / math.sqrt(inputs)
        state[f"rm_head.{layer}.bias"] = torch.randn(outputs)
    return {name: value.contiguous() for name, value in state.items()}


class TinyHPSv3(HPSv3):
    """HPSv3 with the tiny weights' instruction."""

    instruction_sha256 = hashlib.sha256(INSTRUCTION.encode()).hexdigest()

    @classmethod
    def open(cls, settings: WeightSettings, device: str) -> Self:
        found = hpsv3_files.load(settings, instruction_sha256=cls.instruction_sha256, device=device)
        return cls(Scorer(found.network, found.words), found.golden)


Kind = type[ClipReward] | type[TinyHPSv3]
REWARDS: dict[str, tuple[Callable[[Path], None], Kind]] = {  # name: (what writes its files, what is served from them)
    "clip": (clip, Clip),
    "pickscore": (partial(clip, activation="gelu"), PickScore),
    "aesthetic": (linear_head, Aesthetic),
    "hpsv2": (open_clip, HPSv2),
    "hpsv3": (hpsv3, TinyHPSv3),
}
