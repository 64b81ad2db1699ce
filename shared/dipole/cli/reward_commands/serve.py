"""`dipole rewards serve`: one reward over HTTP, by its short name or as a class of anybody's."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from dipole.cli.optional_imports import import_optional
from dipole.downloads.table import read_table
from dipole.errors import ConfigurationError
from dipole.settings import DownloadSettings, load_settings

DeviceOption = Annotated[
    str | None, typer.Option(help="Where weights go: cpu, cuda, cuda:1. Default: cuda where torch sees a GPU.")
]
DtypeOption = Annotated[str | None, typer.Option(help="Precision of the weights: bf16 or fp32.")]
WeightsOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the weights. Default: DIPOLE_REWARD_WEIGHTS, or the folder of the name in DIPOLE_WEIGHTS_DIR."
    ),
]


def serve_reward(
    reward: Annotated[
        str | None,
        typer.Argument(
            help="A reward that comes with Dipole, as in pickscore, or a class, MODULE:CLASS. Default: DIPOLE_REWARD.",
            metavar="NAME",
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: DIPOLE_REWARD_HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on. Default: DIPOLE_REWARD_PORT.")] = None,
    name: Annotated[str | None, typer.Option(help="Name in /v1/info. Default: the class's own.")] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    weights: WeightsOption = None,
    vae: Annotated[
        Path | None,
        typer.Option(help="Folder of the trained model or its VAE: takes its latents too. Default: DIPOLE_REWARD_VAE."),
    ] = None,
) -> None:
    """Serve one reward over HTTP until stopped.

    dipole rewards serve pickscore --device cuda --port 8402

    dipole rewards serve my_module:MyReward

    Modules in the current folder can be named. Further settings come from DIPOLE_REWARD_… variables.
    """
    from dipole import logs, tracing

    sys.path.insert(0, os.getcwd())
    named = reward or os.environ.get("DIPOLE_REWARD", "")
    extra = "rewards" if ":" in named or not named else named
    http_server = import_optional("dipole.web.http_server", extra)
    rewards_app = import_optional("dipole_rewards.app", extra)
    rewards_settings = import_optional("dipole_rewards.settings", extra)
    choose_weights(named, weights, dtype)
    given = {"reward": reward, "reward_host": host, "reward_port": port, "reward_name": name, "reward_device": device,
             "reward_vae": vae}  # fmt: skip
    settings = load_settings(
        rewards_settings.RewardSettings, **{key: value for key, value in given.items() if value is not None}
    )
    service = f"reward-{settings.reward_name or settings.reward.rpartition(':')[2].lower()}"
    logs.configure_logging(service)
    tracing.configure_tracing(service)
    failures: list[Exception] = []

    def stop_server(failure: Exception) -> None:
        failures.append(failure)
        server.should_exit = True

    app = rewards_app.create_app(settings, on_failure=stop_server)
    # before weights are loaded, which takes minutes
    listener = http_server.bind_socket(settings.reward_host, settings.reward_port, "--port or DIPOLE_REWARD_PORT")
    with listener:
        server = http_server.create_server(
            app, host=settings.reward_host, port=settings.reward_port, timeout_graceful_shutdown=10
        )
        server.run(sockets=[listener])
    if failures:
        raise ConfigurationError(f"{settings.reward} could not be loaded: {failures[0]}") from failures[0]
    if not server.started:
        raise ConfigurationError(f"could not listen on {settings.reward_host}:{settings.reward_port}")


def choose_weights(name: str, weights: Path | None, dtype: str | None) -> None:
    """Put into the environment, out of which a reward reads them when it loads, where its weights are and in which
    precision; of a published reward without a folder, the one that `dipole rewards prepare` fills.
    """
    if weights is None and "DIPOLE_REWARD_WEIGHTS" not in os.environ and name in read_table().rewards:
        weights = load_settings(DownloadSettings).weights_dir / name
    if weights is not None:
        os.environ["DIPOLE_REWARD_WEIGHTS"] = str(weights)
    if dtype is not None:
        os.environ["DIPOLE_REWARD_DTYPE"] = dtype
