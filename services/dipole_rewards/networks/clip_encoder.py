"""CLIP's two towers behind one class: unit embeddings of a prompt and of images, from a checkpoint's tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from dipole.errors import ConfigurationError
from dipole_rewards.networks.weight_files import DTYPES, load_exactly, read_json
from dipole_rewards.settings import WeightSettings

MAX_PROMPT_TOKENS = 77  # of a prompt, with its start and end


class ClipEncoder:
    """A CLIP network with its tokenizer, where prompts count. Embeddings are float32 whatever the weights are."""

    def __init__(self, network: CLIPModel, tokenizer: CLIPTokenizer | None) -> None:
        self.network, self.tokenizer = network, tokenizer
        shape: Any = network.config
        self.side: int = shape.vision_config.image_size

    def tokenize(self, prompt: str) -> Tensor:
        """(1, T): start, words, end; a prompt beyond 77 tokens loses its last words.

        A special token inside the prompt is content and loses its meaning: an end would hide what follows.
        """
        assert self.tokenizer is not None
        plain = prompt.replace("<|", "< |")
        ids = self.tokenizer(plain, truncation=True, max_length=MAX_PROMPT_TOKENS, padding=False).input_ids
        return torch.tensor([ids], device=self.network.device)

    def encode_texts(self, prompts: Sequence[str]) -> Tensor:
        """N prompts → (N, D), in one forward.

        They are padded behind their ends, and no token sees what comes after it: what the padding is does not matter,
        except that it must not be the end token, which the network finds by its id.
        """
        ids = pad_sequence([self.tokenize(prompt)[0] for prompt in prompts], batch_first=True)
        return _normalize_rows(self.network.get_text_features(input_ids=ids))

    def encode_images(self, pixels: Tensor) -> Tensor:
        """(K, 3, side, side), normalised → (K, D)"""
        return _normalize_rows(
            self.network.get_image_features(pixel_values=pixels.to(self.network.device, self.network.dtype))
        )


def _normalize_rows(features: Any) -> Tensor:
    return functional.normalize(features.pooler_output.float(), dim=-1)


def load_encoder(
    state: Mapping[str, Tensor],
    settings: WeightSettings,
    device: str,
    *,
    weights: Path,
    config: Path,
    tokenizer: Path | None = None,
) -> ClipEncoder:
    """The network that `config.json` describes, with these tensors, which are those of `weights`.

    Raises ConfigurationError where the files do not belong together.
    """
    described = read_json(config)
    # 0, 1, 2 … once stored
    own = {name: value for name, value in state.items() if not name.endswith(".position_ids")}
    try:
        shape: Any = CLIPConfig.from_dict(described)
        network: Any = load_exactly(CLIPModel, shape, own, DTYPES[settings.reward_dtype])
    except (RuntimeError, StrictDataclassError) as error:
        raise ConfigurationError(f"{weights} is not the CLIP that {config} describes: {error}") from error
    words = None if tokenizer is None else _read_tokenizer(tokenizer)
    if words is not None and len(words) != shape.text_config.vocab_size:
        raise ConfigurationError(
            f"{tokenizer} has {len(words)} tokens, and {config} says {shape.text_config.vocab_size}: "
            "they are not of the same model"
        )
    return ClipEncoder(network.eval().requires_grad_(False).to(device), words)


def _read_tokenizer(path: Path) -> CLIPTokenizer:
    try:
        words: CLIPTokenizer = CLIPTokenizer.from_pretrained(str(path.parent), local_files_only=True)
    except Exception as error:
        # of any kind, by what is damaged in it or in tokenizer_config.json
        raise ConfigurationError(f"{path}, with what lies beside it, cannot be read as a tokenizer: {error}") from error
    return words
