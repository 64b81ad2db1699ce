"""rewards.toml: a team's reward endpoints in a file that may be committed, because it names secrets and holds none.

    [rewards.judge]
    url = "https://judge.lan:8000"
    kind = "vllm-score"                       # absent: dipole
    options = {model = "Qwen/Qwen3-VL-Reranker-2B"}
    key_env = "JUDGE_KEY"                     # the environment variable that holds the key
    tls = "lan"                               # the folder in DIPOLE_TLS_DIR
    description = "…"

The API applies it when it starts (DIPOLE_REWARDS_FILE), and `dipole rewards apply` sends it over REST.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from dipole.client.endpoint import Endpoint, EndpointAddress, TlsName
from dipole.errors import ConfigurationError, InvalidInput
from dipole.protocol.schemas import Name
from dipole.protocol.validation import first_error


class RewardEntry(EndpointAddress):
    """One reward as the file describes it."""

    key_env: str | None = Field(default=None, max_length=255, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    tls: TlsName | None = None
    description: str = Field(default="", max_length=2000, pattern=r"^[^\x00]*$")


class RewardsFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    rewards: dict[Name, dict[str, Any]] = Field(min_length=1)


@dataclass(frozen=True)
class DeclaredReward:
    """A reward that the file declares, with its key from the environment."""

    endpoint: Endpoint
    description: str


def read_rewards_file(path: Path, environment: Mapping[str, str] = os.environ) -> dict[str, DeclaredReward]:
    """Everything the file declares, by name. Raises ConfigurationError that names file, entry, field and fix."""
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from error
    try:
        file = RewardsFile.model_validate(said)
    except ValidationError as error:
        hint = "entries read [rewards.NAME], and nothing else stands in the file"
        raise ConfigurationError(f"{path}: {first_error(error).sentence}; {hint}") from None
    declared = {}
    for name, values in file.rewards.items():
        try:
            declared[name] = _declare_reward(values, environment)
        except InvalidInput as error:
            raise ConfigurationError(f"{path}: rewards.{name}: {error}") from None
    return declared


def _declare_reward(values: Mapping[str, Any], environment: Mapping[str, str]) -> DeclaredReward:
    if "key" in values:
        raise InvalidInput("key: secrets are not in this file; give key_env, the environment variable that holds it")
    try:
        entry = RewardEntry.model_validate(dict(values))
    except ValidationError as error:
        fields = ", ".join(RewardEntry.model_fields)
        first = first_error(error)
        unknown = f"; an entry takes {fields}" if first.kind == "extra_forbidden" else ""
        raise InvalidInput(first.sentence + unknown) from None
    key = None
    if entry.key_env is not None:
        if not (found := environment.get(entry.key_env)):
            raise InvalidInput(f"key_env: {entry.key_env} is not set in this process's environment: set it to the key")
        key = SecretStr(found)
    at = {name: getattr(entry, name) for name in EndpointAddress.model_fields}
    return DeclaredReward(Endpoint.from_values({**at, "key": key, "tls": entry.tls}), entry.description)
