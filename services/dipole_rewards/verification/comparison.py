"""Ours beside the published implementation's score of the golden image, and the golden.json that comes of it."""

from __future__ import annotations

import os
import tempfile
import tomllib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from dipole.downloads.table import fetch_command, read_table
from dipole.errors import ConfigurationError, InvalidInput
from dipole.protocol.images import encode_png
from dipole_rewards.networks.golden_scores import GOLDEN_FILE, Recipe, today, write_json
from dipole_rewards.networks.weight_files import WeightedReward, check_device
from dipole_rewards.reward import Golden, import_reward, rank_items
from dipole_rewards.settings import WeightSettings
from dipole_rewards.verification.environment import Environment

FOLDER = Path(__file__).parent
PACKAGES_TABLE = FOLDER / "packages.toml"
ShowStep = Callable[[str], AbstractContextManager[object]]
"""Told of each step in words, before it begins; what it returns is held while the step takes."""


class PublishedPackages(BaseModel):
    """A row of packages.toml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    requirements: list[str] = Field(min_length=1)


@dataclass(frozen=True)
class ScoreComparison:
    made: Recipe
    ours: float
    published: float
    tolerance: float
    file: Path  # the golden.json that was written
    source: str

    @property
    def agrees(self) -> bool:
        return abs(self.ours - self.published) <= self.tolerance

    def describe(self) -> str:
        """One sentence with both numbers, and what follows."""
        numbers = (
            f"{self.made.reward}: the published implementation ({self.source}) gives the golden image "
            f"{self.published:.6g}, and ours {self.ours:.6g}"
        )
        if self.agrees:
            return (
                f"{numbers}: they agree (± {self.tolerance:g} is allowed), {self.file} says so, and the service is "
                "verified from its next start on"
            )
        return (
            f"{numbers}: they differ by more than {self.tolerance:g}, so the service does not start with {self.file}, "
            "which has the published one; tell us, or remove that file to serve it unverified"
        )


@cache
def read_packages() -> dict[str, PublishedPackages]:
    return {name: PublishedPackages(**row) for name, row in tomllib.loads(PACKAGES_TABLE.read_text()).items()}


def verify_reward(
    name: str,
    *,
    settings: WeightSettings,
    device: str,
    environments: Path,
    show_step: ShowStep,
    python: str,
    packages: Path | None = None,
) -> ScoreComparison:
    """Compare, and write golden.json beside the weights, which are those of `settings`.

    Raises InvalidInput for a reward that cannot be verified, ConfigurationError for weights that are not there, and
    DownloadError where the published implementation cannot be installed or run.
    """
    known = read_packages()
    if name not in known:
        raise InvalidInput(
            f"{name!r} has no published implementation that could be run on its weights; these have: "
            f"{', '.join(known)}",
            field="name",
        )
    folder = settings.reward_weights
    assert folder is not None, "whoever calls has chosen one"
    _check_folder(name, folder)
    with show_step("ours: loading the weights and scoring the golden image"):
        golden, made, tolerance, ours = _score_with_ours(name, settings, device)
    requirements = known[name].requirements
    environment = Environment(environments / name)
    if not environment.has(requirements):
        with show_step(f"installing {', '.join(requirements)} into {environment.folder}"):
            environment.install(requirements, python=python, packages=packages)
    with show_step("the published implementation: loading the weights and scoring the golden image"):
        published = _score_with_published(name, environment, golden, folder, device)
    source = f"{requirements[0]} on {device}"
    file = folder / GOLDEN_FILE
    write_json(file, {**asdict(made), "score": published, "source": f"{source}, {today()}"})
    return ScoreComparison(made, ours, published, tolerance, file, source)


def _check_folder(name: str, folder: Path) -> None:
    """Before minutes are spent."""
    if missing := read_table().rewards[name].missing_files(folder):
        command = fetch_command("rewards", name, folder)
        raise ConfigurationError(f"{folder / missing[0]} is missing; fetch it with `{command}`")
    if not os.access(folder, os.W_OK):
        raise ConfigurationError(
            f"{folder} cannot be written, where {GOLDEN_FILE} belongs: run this where the weights can be"
        )


def _score_with_ours(name: str, settings: WeightSettings, device: str) -> tuple[Golden, Recipe, float, float]:
    """What is asked, of which weights and recipe, how far scores may differ, and ours."""
    kind = import_reward(name)
    assert issubclass(kind, WeightedReward)
    reward = kind.from_settings(settings, check_device(device))
    golden = reward.golden()
    (item,) = rank_items(
        ["golden"], reward.score(prompt=golden.prompt, images=[golden.image], metadata=golden.metadata)
    )
    made = reward.describe_recipe()
    reward.close()
    if item.score is None:
        raise ConfigurationError(f"{name} gives its golden image no score: {item.error and item.error.message}")
    return golden, made, kind.tolerance, item.score


def _score_with_published(name: str, environment: Environment, golden: Golden, weights: Path, device: str) -> float:
    with tempfile.TemporaryDirectory(prefix="dipole-golden-") as folder:
        image = Path(folder) / "golden.png"
        image.write_bytes(encode_png(golden.image))
        asked = {"weights": str(weights.absolute()), "image": str(image), "prompt": golden.prompt, "device": device}
        return environment.run(FOLDER / "published" / f"{name}.py", asked)
