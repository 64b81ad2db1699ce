"""`dipole rewards verify`: is what we compute what the published implementation computes?"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from dipole.cli.optional_imports import import_optional
from dipole.cli.reward_commands.serve import DeviceOption, DtypeOption, WeightsOption, choose_weights
from dipole.cli.terminal import err, out, printable
from dipole.errors import ConfigurationError
from dipole.settings import PlatformSettings, load_settings


def verify_reward(
    name: Annotated[str, typer.Argument(help="A reward with published weights, as in pickscore.")],
    weights: WeightsOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    packages: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="A folder that has the packages; no index is asked."),
    ] = None,
    python: Annotated[
        str, typer.Option(help="The Python of the environment. Default: the one that runs this.", show_default=False)
    ] = sys.executable,
) -> None:
    """Compare a reward with its published implementation on the golden image, and keep that score as golden.json.

    dipole rewards verify pickscore

    The published implementation is installed, pinned, into an environment of its own in DIPOLE_HOME, which the next
    verification uses again. Exits with 1 when the scores differ, or there is none.
    """
    settings = import_optional("dipole_rewards.settings", name)
    reward = import_optional("dipole_rewards.reward", name)
    comparison = import_optional("dipole_rewards.verification.comparison", name)
    choose_weights(name, weights, dtype)
    found = comparison.verify_reward(
        name,
        settings=load_settings(settings.WeightSettings),
        device=reward.choose_device(device or load_settings(settings.RewardSettings, reward=name).reward_device),
        environments=load_settings(PlatformSettings).home.absolute() / "published",
        show_step=_show_step,
        python=python,
        packages=packages,
    )
    if not found.agrees:
        raise ConfigurationError(found.describe())
    out.print(found.describe(), markup=False)


@contextmanager
def _show_step(step: str) -> Iterator[None]:
    """A line for each step."""
    err.print(f"{printable(step)} …")
    yield
