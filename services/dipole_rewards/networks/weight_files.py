"""Files of weights: where they lie, and what they hold. For every reward that has some; nothing is downloaded.

DIPOLE_REWARD_WEIGHTS names a folder. What a repository on the hub offers may lie in the local Hugging Face cache
instead. golden_scores.py says what is known of the score that a reward should give its golden image, and what becomes
of a reward whose score nobody has compared.
"""

from __future__ import annotations

import json
import pickle  # for the name of its error alone
import shlex
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from dipole.downloads.table import find_reward_command
from dipole.errors import ConfigurationError
from dipole.settings import load_settings
from dipole_rewards.networks.golden_scores import (
    GOLDENS_TABLE,
    RECORD_FILE,
    GoldenScore,
    Recipe,
    ScoreRecord,
    check_golden_fits,
    find_known_score,
    read_golden_file,
)
from dipole_rewards.reward import Golden, Pixels, Reward
from dipole_rewards.settings import WeightSettings

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
ModelT = TypeVar("ModelT", bound=PreTrainedModel)


def check_device(device: str) -> str:
    """The device, or ConfigurationError, before anything is read for it."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        # AssertionError: torch was built without it
        raise ConfigurationError(f"DIPOLE_REWARD_DEVICE={device!r} cannot be used here: {error}") from error
    return device


def make_golden_image() -> Pixels:
    """48×64: red grows to the right, green downwards."""
    image = np.full((48, 64, 3), 96, np.uint8)
    image[..., 0], image[..., 1] = np.arange(64) * 4, np.arange(48)[:, None] * 5
    return image


class WeightedReward(Reward):
    """A reward with weights: `from_settings` says where they lie; its instances know their golden score, or None."""

    deterministic = True
    tolerance: ClassVar[float]
    """How far from the golden score another device's bfloat16 may be, where whoever knows the score does not say."""
    goldens_table: ClassVar[Path] = GOLDENS_TABLE
    settings_class: ClassVar[type[WeightSettings]] = WeightSettings

    golden_score: GoldenScore | None
    """The published implementation's; None where it is not known, and then `record` has ours of the first start."""
    record: ScoreRecord | None = None

    @classmethod
    def load(cls, device: str) -> Self:
        settings = load_settings(cls.settings_class)
        reward = cls.from_settings(settings, check_device(device))
        assert settings.reward_weights is not None, "from_settings has refused that"
        made, folder = reward.describe_recipe(), settings.reward_weights
        if reward.golden_score is not None:
            check_golden_fits(reward.golden_score, made, folder)
        else:
            reward.golden_score = find_known_score(made, tolerance=cls.tolerance, table=cls.goldens_table)
        reward.verified = reward.golden_score is not None
        file = (settings.reward_state or folder) / RECORD_FILE
        reward.record = ScoreRecord(file, made, settings.reward_dtype, device.partition(":")[0])
        return reward

    @classmethod
    @abstractmethod
    def from_settings(cls, settings: WeightSettings, device: str) -> Self:
        """The reward with its weights. Raises ConfigurationError that names the file which is missing or wrong."""

    @abstractmethod
    def networks(self) -> Sequence[nn.Module]:
        """Every module with weights: what is left out stays on the device while the reward sleeps."""

    def describe_recipe(self) -> Recipe:
        return Recipe(self.name, self.model_revision, self.recipe_version)

    def golden(self) -> Golden:
        known = self.golden_score
        score, tolerance = (known.score, known.tolerance) if known else (None, self.tolerance)
        return Golden(prompt="a soft gradient", image=make_golden_image(), score=score, tolerance=tolerance)

    def record_golden_score(self, score: float) -> None:
        if self.record is not None:
            self.record.compare(score, tolerance=self.tolerance)


@dataclass(frozen=True)
class WeightsFolder:
    """The folder of one reward's weights; `explaining_module` is the one whose docstring says what belongs there.

    `fetch_command` brings the published files to it, or to the folder that it lies in; None where none is known.
    """

    path: Path
    explaining_module: str
    fetch_command: str | None = None

    @classmethod
    def from_settings(cls, settings: WeightSettings, reward: str, *, explained: str) -> WeightsFolder:
        if settings.reward_weights is None:
            raise ConfigurationError(
                f"DIPOLE_REWARD_WEIGHTS must name the folder of {reward}'s weights; {explained} says what belongs there"
            )
        return cls(settings.reward_weights, explained, find_reward_command(reward, settings.reward_weights))

    def find_file(self, name: str, source: str | None = None) -> Path:
        """The file in the folder, or else in the local Hugging Face cache.

        `source` is where it comes from: a repository on the hub, or the file's https address. Raises ConfigurationError
        with the command that fetches it.
        """
        path = self.path / name
        if path.is_file():
            return path
        if source is None:
            raise ConfigurationError(f"{path} is missing; {self.explaining_module} says what belongs there")
        if source.startswith("https://"):
            command = self.fetch_command or f"curl -L -o {shlex.quote(str(path))} {shlex.quote(source)}"
            raise ConfigurationError(f"{path} is missing; fetch it with `{command}`")
        cached = try_to_load_from_cache(source, name)
        if isinstance(cached, str):
            return Path(cached)
        command = self.fetch_command or f"hf download {source} {name} --local-dir {shlex.quote(str(self.path))}"
        raise ConfigurationError(
            f"{path} is missing, and so is {source} in the local Hugging Face cache; fetch it with `{command}`; "
            f"{self.explaining_module} says what else belongs there"
        )

    def read_golden_score(self, *, tolerance: float) -> GoldenScore | None:
        """`golden.json`, with this tolerance where it names none; None without it."""
        return read_golden_file(self.path, tolerance=tolerance)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ConfigurationError that names the file."""
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        # no JSON, or no UTF-8
        raise ConfigurationError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigurationError(f"{path} holds no JSON object")
    return found


def read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ConfigurationError(f"{path} cannot be read as safetensors: {error}") from error


def read_torch(path: Path, *, within: str | None = None) -> dict[str, Tensor]:
    """Tensors by name out of PyTorch's format, or what lies `within` one of its keys; nothing else is unpickled."""
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigurationError(
            f"{path} holds more than tensors, or is damaged; reading the rest could run anything, so it is refused"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        # a zip or an old file that breaks off
        raise ConfigurationError(f"{path} is not a whole PyTorch file: {error}") from error
    if within is not None:
        content = content.get(within) if isinstance(content, Mapping) else None
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ConfigurationError(f"{path} holds no tensors by name" + (f" under {within!r}" if within else ""))
    return dict(content)


def load_exactly(kind: type[ModelT], config: Any, state: Mapping[str, Tensor], dtype: torch.dtype) -> ModelT:
    """A transformers model with these weights, no more and no fewer, and without drawing random ones first.

    Raises RuntimeError that names what differs; shapes before memory is taken, which a wrong `config` may ask much of.
    """
    with torch.device("meta"):
        expected = kind(config).state_dict()
    for name, tensor in expected.items():
        if name in state and state[name].shape != tensor.shape:
            raise RuntimeError(f"{name} is {list(state[name].shape)}, not {list(tensor.shape)}")
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    loading: Any = partial(kind.from_pretrained, None, output_loading_info=True)
    model, told = loading(config=config, state_dict=dict(state), dtype=dtype)
    wrong = [f"{what} {name}" for what in ("missing", "unexpected") for name in sorted(told[f"{what}_keys"])]
    if wrong:
        raise RuntimeError(", ".join(wrong[:5]) + (" …" if len(wrong) > 5 else ""))
    found: ModelT = model
    return found
