"""`dipole rewards …`: prepare, serve and verify rewards, register endpoints or all that a file declares, check any."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer

from dipole.cli.check import check_endpoint
from dipole.cli.optional_imports import import_optional
from dipole.cli.reward_commands.serve import serve_reward
from dipole.cli.reward_commands.verify import verify_reward
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
from dipole.downloads.fetch import noted_digests
from dipole.downloads.report import published_weights
from dipole.errors import InvalidInput

app = typer.Typer(
    no_args_is_help=True, help="Prepare, serve, verify, register, list and delete rewards, and check reward endpoints."
)
app.command("serve")(serve_reward)
app.command("verify")(verify_reward)
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


@app.command("register")
def register_rewards(
    endpoints: Annotated[list[str], typer.Argument(help="Endpoints as the trainer reaches them.", metavar="NAME=URL…")],
    kind: Annotated[
        str, typer.Option(help="Kind of server there, such as dipole, vllm-score or flow-factory-compute.")
    ] = "dipole",
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
    """List registered rewards, and whether each says that it is verified; `dipole status` says whether it is ready.

    Then the published rewards: whether their weights are on this machine, or the command that brings them, and whether
    a golden score is known of them, so that a service on them is verified.
    """
    columns = {
        "name": lambda reward: reward["name"],
        "url": lambda reward: reward["url"],
        "kind": lambda reward: reward["kind"],
        "verified": lambda reward: _describe_verified(reward["verified"]),
        "description": lambda reward: reward["description"],
    }
    with TrainerApi(url, key) as api:
        try:
            registered = api.get("/v1/rewards")["data"]
            with ThreadPoolExecutor(max_workers=8) as pool:
                told = list(pool.map(lambda reward: _ask_verified(api, reward), registered))
            rows = [{**reward, "verified": each} for reward, each in zip(registered, told, strict=True)]
            print_list(rows, columns, as_json=as_json)
        except TrainerApiError as error:
            if error.http_status != 0:
                raise
            err.print(f"[yellow]{printable(str(error))}[/]")
    print_published_weights(
        _published_rewards(),
        as_json=as_json,
        more={
            "verified": lambda weights: (
                f"no: dipole rewards verify {weights['name']}"
                if weights["verified"] is False
                else _describe_verified(weights["verified"])
            )
        },
    )


def _published_rewards() -> Iterator[dict[str, Any]]:
    """The published rewards; `verified` of those whose weights are here."""
    golden_scores = import_optional("dipole_rewards.networks.golden_scores", "rewards")
    for weights in published_weights("rewards"):
        name, folder = weights["name"], Path(weights["folder"])
        is_here = weights["state"] == "here"
        known = golden_scores.is_verified_folder(name, folder, noted_digests(folder)) if is_here else None
        yield {**weights, "verified": known}


def _ask_verified(api: TrainerApi, reward: dict[str, Any]) -> bool | None:
    """What a service of ours says of itself now; None where it says nothing."""
    if reward.get("kind") != "dipole":
        return None
    try:
        checked: dict[str, Any] = api.post(f"/v1/rewards/{quote_segment(reward['name'])}/check")
    except TrainerApiError:
        return None
    return (checked["info"] or {}).get("verified")


def _describe_verified(verified: bool | None) -> str:
    return "" if verified is None else "yes" if verified else "no"


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
