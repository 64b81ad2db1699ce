"""HPSv3's files: where they lie, what they must hold, and how they become a network. Nothing is downloaded.

DIPOLE_REWARD_WEIGHTS names a folder; the first three may lie in the local Hugging Face cache instead.

    HPSv3.safetensors             of MizzenAI/HPSv3
    config.json, tokenizer.json   of Qwen/Qwen2-VL-7B-Instruct, and tokenizer_config.json beside them
    instruction.txt               the text that it was trained to answer: the strings INSTRUCTION and
                                  prompt_with_special_token of hpsv3/dataset/data_collator_qwen.py in the package hpsv3,
                                  one after the other, out of which `dipole rewards prepare hpsv3` reads them
    golden.json                   where it is known, {"score": …}: what the published implementation gives the golden
                                  image; `dipole rewards verify hpsv3` writes it

The instruction is not in this repository, because it is somebody else's text; a wrong one would only lower scores a
little, so its SHA-256 is.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AutoTokenizer, Qwen2VLConfig, Qwen2VLModel

from dipole.errors import ConfigurationError
from dipole_rewards.networks.golden_scores import GoldenScore, weights_revision
from dipole_rewards.networks.hpsv3_model import REWARD_TOKEN, HPSv3Network, QuestionTokenizer
from dipole_rewards.networks.weight_files import DTYPES, WeightsFolder, load_exactly, read_json, read_safetensors
from dipole_rewards.settings import WeightSettings

HPSV3_REPOSITORY, QWEN_REPOSITORY = "MizzenAI/HPSv3", "Qwen/Qwen2-VL-7B-Instruct"
INSTRUCTION_SOURCE = "https://github.com/MizzenAI/HPSv3"  # out of which `dipole rewards prepare hpsv3` reads it
GOLDEN_TOLERANCE = 0.1  # of the golden score: another GPU's bfloat16


@dataclass(frozen=True)
class LoadedHPSv3:
    network: HPSv3Network
    tokenizer: QuestionTokenizer
    golden: GoldenScore | None
    revision: str  # of the weights: the start of the file's SHA-256, which the hub shows too


def load_hpsv3(settings: WeightSettings, *, instruction_sha256: str, device: str) -> LoadedHPSv3:
    """Everything, on `device`. Raises ConfigurationError that names the file which is missing or wrong."""
    folder = WeightsFolder.from_settings(settings, "hpsv3", explained=__name__)
    weights = folder.find_file("HPSv3.safetensors", HPSV3_REPOSITORY)
    config, tokenizer = (folder.find_file(name, QWEN_REPOSITORY) for name in ("config.json", "tokenizer.json"))
    instruction = _read_instruction(folder.find_file("instruction.txt", INSTRUCTION_SOURCE), instruction_sha256)
    golden = folder.read_golden_score(tolerance=GOLDEN_TOLERANCE)
    read_json(config)  # which AutoTokenizer reads too, without naming it where it is damaged
    words = _load_question_tokenizer(tokenizer, instruction)
    network = load_hpsv3_network(weights, config, words, DTYPES[settings.reward_dtype])
    return LoadedHPSv3(network.to(device), words, golden, weights_revision(weights))


def load_hpsv3_network(weights: Path, config: Path, words: QuestionTokenizer, dtype: torch.dtype) -> HPSv3Network:
    """The network in evaluation mode, its head in float32 whatever `dtype` is."""
    stored = read_safetensors(weights)
    state = {_qwen_name(name): tensor for name, tensor in stored.items() if not name.startswith("lm_head.")}
    described, vocabulary = read_json(config), _check_vocabulary(state, words, weights)
    head = {name.removeprefix("rm_head."): state.pop(name) for name in list(state) if name.startswith("rm_head.")}
    try:
        shape: Any = Qwen2VLConfig.from_dict(described)
        shape.text_config.vocab_size = vocabulary
        network = HPSv3Network(load_exactly(Qwen2VLModel, shape, state, dtype), words.reward_id)
        network.rm_head.load_state_dict(head)
    except (RuntimeError, StrictDataclassError) as error:
        raise ConfigurationError(f"{weights} is not HPSv3 as {config} describes it: {error}") from error
    return network.eval().requires_grad_(False)


def _load_question_tokenizer(tokenizer: Path, instruction: str) -> QuestionTokenizer:
    """Raises ConfigurationError unless `tokenizer` and the files beside it make a question about an image."""
    try:
        words = QuestionTokenizer(
            AutoTokenizer.from_pretrained(str(tokenizer.parent), local_files_only=True), instruction
        )
        words.tokenize("", image_tokens=1)
    except Exception as error:
        # of any kind, by what is missing or damaged
        raise ConfigurationError(
            f"{tokenizer}, with config.json and tokenizer_config.json (the chat template) beside it, "
            f"is not {QWEN_REPOSITORY}'s "
            f"tokenizer: {error}"
        ) from error
    return words


def _read_instruction(path: Path, sha256: str) -> str:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ConfigurationError(
            f"{path} is not the text that HPSv3 was trained with, to the last blank (SHA-256 {sha256[:16]}…)"
        )
    return data.decode()


def _qwen_name(name: str) -> str:
    """A weight's name in Qwen2VLModel; the checkpoint has transformers' layout of before or after 4.52 (`visual.…`)."""
    if name.startswith("model.") and not name.startswith(("model.visual.", "model.language_model.")):
        return "language_model." + name.removeprefix("model.")
    return name.removeprefix("model.")


def _check_vocabulary(state: dict[str, Tensor], words: QuestionTokenizer, weights: Path) -> int:
    """How many tokens the weights know, which must be the tokenizer's: an id off by one would go unnoticed."""
    embedding, known = state.get("language_model.embed_tokens.weight"), len(words.tokenizer)
    if embedding is None or len(embedding) != known:
        rows = "no token embeddings" if embedding is None else f"embeddings of {len(embedding)} tokens"
        raise ConfigurationError(
            f"{weights} has {rows} but the tokenizer, with {REWARD_TOKEN}, {known}: "
            f"they come of {HPSV3_REPOSITORY} and {QWEN_REPOSITORY}"
        )
    return known
