"""Files of `imagereward`: BLIP's two towers and the head with the published names, and BERT's tokenizer."""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from dipole_rewards.rewards.imagereward import WEIGHTS_FILE

IMAGE_SIDE, PATCH_SIDE = 32, 8
VISION_WIDTH, TEXT_WIDTH = 128, 48  # features; 128 is two of BLIP's heads
LAYERS, POSITIONS = 2, 40
BIAS_STD = 0.1  # deviation of what is zero when fresh


def write_imagereward(folder: Path) -> None:
    """ImageReward.pt, med_config.json and tokenizer.json."""
    config = make_med_config(write_bert_tokenizer(folder) + 2)  # [DEC] and [ENC], which the published code adds
    (folder / "med_config.json").write_text(json.dumps(config, indent=2))
    state = {
        **{f"blip.visual_encoder.{name}": value for name, value in _vision_tensors()},
        **{f"blip.text_encoder.{name}": value for name, value in _text_tensors(config)},
        **dict(_linear_tensors("blip.vision_proj", VISION_WIDTH, 16)),  # in the published file too, and of no use
        **dict(_linear_tensors("blip.text_proj", TEXT_WIDTH, 16)),
        **{f"mlp.layers.{name}": value for name, value in _head_tensors()},
    }
    torch.save(state, folder / WEIGHTS_FILE)


def make_med_config(vocabulary: int) -> dict[str, Any]:
    """As published, where encoder_width is not the vision tower's."""
    return {
        "architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1, "hidden_size": TEXT_WIDTH, "initializer_range": 0.02,
        "intermediate_size": 2 * TEXT_WIDTH,
        "layer_norm_eps": 1e-12, "max_position_embeddings": POSITIONS, "model_type": "bert", "num_attention_heads": 4,
        "num_hidden_layers": LAYERS, "pad_token_id": 0, "type_vocab_size": 2, "vocab_size": vocabulary,
        "encoder_width": 96, "add_cross_attention": True,
    }  # fmt: skip


def write_bert_tokenizer(folder: Path) -> int:
    """Printable characters, each also inside a word: 5 special tokens and 2·68 others, lower case as in BERT's."""
    letters = sorted(set(string.printable.lower()) - set(string.whitespace))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = [*special, *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = Tokenizer(models.WordPiece({token: index for index, token in enumerate(tokens)}))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    return len(tokens)


def _vision_tensors() -> Iterator[tuple[str, Tensor]]:
    yield "cls_token", torch.randn(1, 1, VISION_WIDTH)
    yield "pos_embed", torch.randn(1, (IMAGE_SIDE // PATCH_SIDE) ** 2 + 1, VISION_WIDTH)
    yield "patch_embed.proj.weight", torch.randn(VISION_WIDTH, 3, PATCH_SIDE, PATCH_SIDE) / PATCH_SIDE
    yield "patch_embed.proj.bias", torch.randn(VISION_WIDTH) * BIAS_STD
    for layer in range(LAYERS):
        yield from _norm_tensors(f"blocks.{layer}.norm1", VISION_WIDTH)
        yield from _linear_tensors(f"blocks.{layer}.attn.qkv", VISION_WIDTH, 3 * VISION_WIDTH)
        yield from _linear_tensors(f"blocks.{layer}.attn.proj", VISION_WIDTH, VISION_WIDTH)
        yield from _norm_tensors(f"blocks.{layer}.norm2", VISION_WIDTH)
        yield from _linear_tensors(f"blocks.{layer}.mlp.fc1", VISION_WIDTH, 2 * VISION_WIDTH)
        yield from _linear_tensors(f"blocks.{layer}.mlp.fc2", 2 * VISION_WIDTH, VISION_WIDTH)
    yield from _norm_tensors("norm", VISION_WIDTH)


def _text_tensors(config: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    yield "embeddings.position_ids", torch.arange(POSITIONS)[None]
    yield "embeddings.word_embeddings.weight", torch.randn(config["vocab_size"], TEXT_WIDTH)
    yield "embeddings.position_embeddings.weight", torch.randn(POSITIONS, TEXT_WIDTH)
    yield from _norm_tensors("embeddings.LayerNorm", TEXT_WIDTH)
    for layer in range(LAYERS):
        block = f"encoder.layer.{layer}"
        for attention, seen in {"attention": TEXT_WIDTH, "crossattention": VISION_WIDTH}.items():
            yield from _linear_tensors(f"{block}.{attention}.self.query", TEXT_WIDTH, TEXT_WIDTH)
            yield from _linear_tensors(f"{block}.{attention}.self.key", seen, TEXT_WIDTH)
            yield from _linear_tensors(f"{block}.{attention}.self.value", seen, TEXT_WIDTH)
            yield from _linear_tensors(f"{block}.{attention}.output.dense", TEXT_WIDTH, TEXT_WIDTH)
            yield from _norm_tensors(f"{block}.{attention}.output.LayerNorm", TEXT_WIDTH)
        yield from _linear_tensors(f"{block}.intermediate.dense", TEXT_WIDTH, 2 * TEXT_WIDTH)
        yield from _linear_tensors(f"{block}.output.dense", 2 * TEXT_WIDTH, TEXT_WIDTH)
        yield from _norm_tensors(f"{block}.output.LayerNorm", TEXT_WIDTH)


def _head_tensors() -> Iterator[tuple[str, Tensor]]:
    for layer, (inputs, outputs) in {
        0: (TEXT_WIDTH, 1024),
        2: (1024, 128),
        4: (128, 64),
        6: (64, 16),
        7: (16, 1),
    }.items():
        yield from _linear_tensors(str(layer), inputs, outputs)


def _linear_tensors(name: str, inputs: int, outputs: int) -> Iterator[tuple[str, Tensor]]:
    yield f"{name}.weight", torch.randn(outputs, inputs) / inputs**0.5
    yield f"{name}.bias", torch.randn(outputs) * BIAS_STD


def _norm_tensors(name: str, width: int) -> Iterator[tuple[str, Tensor]]:
    yield f"{name}.weight", 1 + BIAS_STD * torch.randn(width)
    yield f"{name}.bias", BIAS_STD * torch.randn(width)
