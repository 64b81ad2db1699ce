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

from dipole_rewards.rewards.imagereward import FILE

SIDE, PATCH = 32, 8
VISION, TEXT = 128, 48  # features; 128 is two of BLIP's heads
LAYERS, POSITIONS = 2, 40
BIASES = 0.1  # deviation of what is zero when fresh


def imagereward(folder: Path) -> None:
    """ImageReward.pt, med_config.json and tokenizer.json."""
    config = med_config(bert_tokenizer(folder) + 2)  # [DEC] and [ENC], which the published code adds
    (folder / "med_config.json").write_text(json.dumps(config, indent=2))
    state = {
        **{f"blip.visual_encoder.{name}": value for name, value in _vision()},
        **{f"blip.text_encoder.{name}": value for name, value in _text(config)},
        **dict(_linear("blip.vision_proj", VISION, 16)),  # in the published file too, and of no use
        **dict(_linear("blip.text_proj", TEXT, 16)),
        **{f"mlp.layers.{name}": value for name, value in _head()},
    }
    torch.save(state, folder / FILE)


def med_config(vocabulary: int) -> dict[str, Any]:
    """As published, where encoder_width is not the vision tower's."""
    return {
        "architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1, "hidden_size": TEXT, "initializer_range": 0.02, "intermediate_size": 2 * TEXT,
        "layer_norm_eps": 1e-12, "max_position_embeddings": POSITIONS, "model_type": "bert", "num_attention_heads": 4,
        "num_hidden_layers": LAYERS, "pad_token_id": 0, "type_vocab_size": 2, "vocab_size": vocabulary,
        "encoder_width": 96, "add_cross_attention": True,
    }  # fmt: skip


def bert_tokenizer(folder: Path) -> int:
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


def _vision() -> Iterator[tuple[str, Tensor]]:
    yield "cls_token", torch.randn(1, 1, VISION)
    yield "pos_embed", torch.randn(1, (SIDE // PATCH) ** 2 + 1, VISION)
    yield "patch_embed.proj.weight", torch.randn(VISION, 3, PATCH, PATCH) / PATCH
    yield "patch_embed.proj.bias", torch.randn(VISION) * BIASES
    for layer in range(LAYERS):
        yield from _norm(f"blocks.{layer}.norm1", VISION)
        yield from _linear(f"blocks.{layer}.attn.qkv", VISION, 3 * VISION)
        yield from _linear(f"blocks.{layer}.attn.proj", VISION, VISION)
        yield from _norm(f"blocks.{layer}.norm2", VISION)
        yield from _linear(f"blocks.{layer}.mlp.fc1", VISION, 2 * VISION)
        yield from _linear(f"blocks.{layer}.mlp.fc2", 2 * VISION, VISION)
    yield from _norm("norm", VISION)


def _text(config: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    yield "embeddings.position_ids", torch.arange(POSITIONS)[None]
    yield "embeddings.word_embeddings.weight", torch.randn(config["vocab_size"], TEXT)
    yield "embeddings.position_embeddings.weight", torch.randn(POSITIONS, TEXT)
    yield from _norm("embeddings.LayerNorm", TEXT)
    for layer in range(LAYERS):
        block = f"encoder.layer.{layer}"
        for attention, seen in {"attention": TEXT, "crossattention": VISION}.items():
            yield from _linear(f"{block}.{attention}.self.query", TEXT, TEXT)
            yield from _linear(f"{block}.{attention}.self.key", seen, TEXT)
            yield from _linear(f"{block}.{attention}.self.value", seen, TEXT)
            yield from _linear(f"{block}.{attention}.output.dense", TEXT, TEXT)
            yield from _norm(f"{block}.{attention}.output.LayerNorm", TEXT)
        yield from _linear(f"{block}.intermediate.dense", TEXT, 2 * TEXT)
        yield from _linear(f"{block}.output.dense", 2 * TEXT, TEXT)
        yield from _norm(f"{block}.output.LayerNorm", TEXT)


def _head() -> Iterator[tuple[str, Tensor]]:
    for layer, (inputs, outputs) in {0: (TEXT, 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16), 7: (16, 1)}.items():
        yield from _linear(str(layer), inputs, outputs)


def _linear(name: str, inputs: int, outputs: int) -> Iterator[tuple[str, Tensor]]:
    yield f"{name}.weight", torch.randn(outputs, inputs) / inputs**0.5
    yield f"{name}.bias", torch.randn(outputs) * BIASES


def _norm(name: str, width: int) -> Iterator[tuple[str, Tensor]]:
    yield f"{name}.weight", 1 + BIASES * torch.randn(width)
    yield f"{name}.bias", BIASES * torch.randn(width)
