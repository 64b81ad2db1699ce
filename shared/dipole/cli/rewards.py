"""`dipole rewards …`: serve a reward, register endpoints or all that a file declares, check any of them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dipole.cli.check import check_endpoint
from dipole.cli.optional_imports import import_optional
from dipole.cli.terminal import (
    AdminKeyOption,
    FromOption,
    JsonOption,
    KeyOption,
    ToOption,
    UrlOption,
    err,
    fetch_and_print,
    out,
    print_list,
    print_published_weights,
    printable,
)
from dipole.client.trainer_api import DEFAULT_URL, TrainerApi, TrainerApiError, quote_segment
from dipole.errors import ConfigurationError, InvalidInput
from dipole.settings import load_settings

app = typer.Typer(
    no_args_is_help=True, help="Prepare, serve, register, list and delete rewards, and check reward endpoints."
)
app.command("check")(check_endpoint)


@app.command("prepare")
def prepare_rewards(
    names: Annotated[
        list[str], typer.Argument(help="Rewards with weights; `dipole rewards list` shows them.", metavar="NAME…")
    ],
    to: ToOption = None,
    given: FromOption = None,
) -> None:
    """Bring the published weights of rewards to this machine. Run again, it goes on where it stopped.

    dipole rewards prepare pickscore hpsv3

    HF_ENDPOINT names a mirror of the hub, and --from a folder that has the files, where there is no network.
    """
    fetch_and_print("rewards", names, to, given, extra="clip")


@app.command("serve")
def serve_reward(
    reward: Annotated[
        str | None,
        typer.Argument(help="The reward class, MODULE:CLASS. Default: DIPOLE_REWARD.", metavar="MODULE:CLASS"),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: DIPOLE_REWARD_HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on. Default: DIPOLE_REWARD_PORT.")] = None,
    name: Annotated[str | None, typer.Option(help="Name in /v1/info. Default: the class's own.")] = None,
    device: Annotated[str | None, typer.Option(help="Where weights go: cpu, cuda, cuda:1.")] = None,
) -> None:
    """Serve one reward over HTTP until stopped.

    dipole rewards serve dipole_rewards.rewards.colourfulness:Colourfulness --port 8402

    Modules in the current folder can be named. Further settings come from DIPOLE_REWARD_… variables.
    """
    from dipole import logs

    sys.path.insert(0, os.getcwd())
    http_server = import_optional("dipole.web.http_server", "rewards")
    rewards_app = import_optional("dipole_rewards.app", "rewards")
    rewards_settings = import_optional("dipole_rewards.settings", "rewards")
    given = {"reward": reward, "reward_host": host, "reward_port": port, "reward_name": name, "reward_device": device}
    settings = load_settings(
        rewards_settings.RewardSettings, **{key: value for key, value in given.items() if value is not None}
    )
    logs.configure_logging(f"reward-{settings.reward_name or settings.reward.rpartition(':')[2].lower()}")
    failures: list[Exception] = []

    def stop_server(failure: Exception) -> None:
        failures.append(failure)
        server.should_exit = True

    server = http_server.create_server(
        rewards_app.create_app(settings, on_failure=stop_server),
        host=settings.reward_host,
        port=settings.reward_port,
        timeout_graceful_shutdown=10,
    )
    server.run()
    if failures:
        raise ConfigurationError(f"{settings.reward} could not be loaded: {failures[0]}") from failures[0]
    if not server.started:
        raise ConfigurationError(f"could not listen on {settings.reward_host}:{settings.reward_port}")


@app.command("register")
def register_rewards(
    endpoints: Annotated[list[str], typer.Argument(help="Endpoints as the trainer reaches them.", metavar="NAME=URL…")],
    kind: Annotated[str, typer.Option(help="Kind of server there: dipole, vllm-score or unirl-score.")] = "dipole",
    option: Annotated[
        list[str] | None, typer.Option(help="An option of the kind, as NAME=VALUE; repeat it.", metavar="NAME=VALUE")
    ] = None,
    reward_key: Annotated[
        str | None, typer.Option(help="Bearer key of the endpoints.", envvar="DIPOLE_REWARD_KEY", show_default=False)
    ] = None,
    tls: Annotated[
        str | None, typer.Option(help="Folder in DIPOLE_TLS_DIR with the CA and the client certificate for them.")
    ] = None,
    description: Annotated[
        str, typer.Option(help="A note for people, shown where rewards are listed.", show_default=False)
    ] = "",
    url: UrlOption = DEFAULT_URL,
    key: AdminKeyOption = None,
) -> None:
    """Tell a trainer API of endpoints, so that jobs can name them. Registering a name again replaces it.

    dipole rewards register shapes=http://127.0.0.1:8401 colourfulness=http://127.0.0.1:8402

    dipole rewards register judge=http://127.0.0.1:8000 --kind vllm-score --option model=Qwen/Qwen3-VL-Reranker-2B
    """
    pairs = [_split_pair(endpoint, "NAME=URL, as in shapes=http://127.0.0.1:8401") for endpoint in endpoints]
    options = dict(_split_pair(each, "NAME=VALUE, as in model=jinaai/jina-reranker-m0") for each in option or ())
    same = {"kind": kind, "options": options, "key": reward_key, "tls": tls, "description": description}
    with TrainerApi(url, key) as api:
        for name, address in pairs:
            _print_registered(api.post("/v1/rewards", {"name": name, "url": address, **same}))


@app.command("apply")
def apply_rewards_file(
    file: Annotated[Path, typer.Argument(help="A rewards.toml; examples/rewards.toml explains it.")],
    url: UrlOption = DEFAULT_URL,
    key: AdminKeyOption = None,
) -> None:
    """Register all that a file declares, and say what changed. Rewards that it does not name stay as they are.

    Keys come from the environment of this command, from the variables that the file names.
    """
    from dipole.client import rewards_file

    declared = rewards_file.read_rewards_file(file)
    with TrainerApi(url, key) as api:
        for name, each in declared.items():
            try:
                values = {**each.endpoint.to_record(), "description": each.description}
                _print_registered(api.post("/v1/rewards", {"name": name, **values}))
            except TrainerApiError as error:
                raise TrainerApiError(f"{file}: rewards.{name}: {error}", http_status=error.http_status) from error
        left = [each["name"] for each in api.get("/v1/rewards")["data"] if each["name"] not in declared]
    if left:
        named = ", ".join(left)
        out.print(f"not in {file}, left as they are: {named} (`dipole rewards delete NAME` forgets one)", markup=False)


@app.command("list")
def list_rewards(as_json: JsonOption = False, url: UrlOption = DEFAULT_URL, key: KeyOption = None) -> None:
    """List registered rewards; `dipole status` asks each whether it is ready.

    Then the published rewards: whether their weights are on this machine, and the command that brings them.
    """
    columns = {
        "name": lambda reward: reward["name"],
        "url": lambda reward: reward["url"],
        "kind": lambda reward: reward["kind"],
        "description": lambda reward: reward["description"],
    }
    with TrainerApi(url, key) as api:
        try:
            print_list(api.get("/v1/rewards")["data"], columns, as_json=as_json)
        except TrainerApiError as error:
            if error.http_status != 0:
                raise
            err.print(f"[yellow]{printable(str(error))}[/]")
    print_published_weights("rewards", as_json=as_json)


@app.command("delete")
def delete_rewards(
    names: Annotated[list[str], typer.Argument(help="Registered names.", metavar="NAME…")],
    url: UrlOption = DEFAULT_URL,
    key: AdminKeyOption = None,
) -> None:
    """Forget registered rewards. One that an open job uses stays."""
    with TrainerApi(url, key) as api:
        for name in names:
            print(api.delete(f"/v1/rewards/{quote_segment(name)}")["id"])


def _split_pair(given: str, form: str) -> tuple[str, str]:
    name, _, value = given.partition("=")
    if not name or not value:
        raise InvalidInput(f"{given!r} must read {form}")
    return name, value


def _print_registered(registered: dict[str, Any]) -> None:
    change = " ".join([registered["change"], ", ".join(registered["changed"])]).strip()
    line = f"{registered['name']} is at {registered['url']} ({registered['kind']}): {change}"
    out.print(line, markup=False)
