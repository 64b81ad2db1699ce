"""`dipole images …` and `dipole models …`: pictures, and the models that draw them, from the command line."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from dipole.cli.terminal import (
    FromOption,
    JsonOption,
    KeyOption,
    ToOption,
    UrlOption,
    err,
    fetch_and_print,
    format_time,
    out,
    print_list,
    print_published_weights,
    printable,
)
from dipole.client.trainer_api import DEFAULT_URL, TrainerApi, TrainerApiError
from dipole.downloads.report import published_weights
from dipole.settings import PlatformSettings, load_settings

app = typer.Typer(no_args_is_help=True, help="Draw images.")
models_app = typer.Typer(no_args_is_help=True, help="List models, and fetch published ones.")

GENERATE_TIMEOUT_S = 3660.0  # the API's own deadline comes first, whatever it is set to


@app.callback()
def images_group() -> None:
    """Draw images."""  # makes `generate` a word that has to be said


@app.command("generate")
def generate_images(
    model: Annotated[str, typer.Option(help="A base, a job's fine_tuned_model, or a checkpoint's name or id.")],
    prompt: Annotated[str, typer.Option(help="What to draw.")],
    n: Annotated[int, typer.Option(min=1, max=10, help="Number of images.")] = 1,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the first image; the next images have the next seeds.")
    ] = None,
    size: Annotated[str, typer.Option(help="Size of the images, as in 512x512; auto is the model's own.")] = "auto",
    folder: Annotated[Path, typer.Option("--out", help="Folder for the PNG files.")] = Path("out/images"),
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Draw images and print the paths of the PNG files. Needs a sampler, which `dipole up` has.

    Examples:

    dipole images generate --model tiny-turbo --prompt "a photo of a red square" --n 4 --seed 7

    dipole images generate --model ftckpt-… --prompt "a photo of a red square" --n 4 --seed 7     (the same noises)
    """
    body: dict[str, Any] = {"model": model, "prompt": prompt, "n": n, "size": size}
    if seed is not None:
        body["seed"] = seed
    with TrainerApi(url, key) as api:
        answer = api.post("/v1/images/generations", body, timeout=GENERATE_TIMEOUT_S)
    if answer.get("warning"):
        typer.echo(f"warning: {answer['warning']}", err=True)
    folder.mkdir(parents=True, exist_ok=True)
    for image in answer["data"]:
        path = folder / f"{slugify(model)}_{slugify(prompt)}_{image['seed']}.png"
        path.write_bytes(base64.b64decode(image["b64_json"]))
        out.print(str(path), markup=False)


def slugify(text: str) -> str:
    """A name that any file system takes."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()[:48] or "x"


@models_app.command("fetch")
def fetch_models(
    names: Annotated[
        list[str], typer.Argument(help="Published names; `dipole models list` shows them.", metavar="NAME…")
    ],
    to: ToOption = None,
    given: FromOption = None,
) -> None:
    """Bring published models and feature networks to this machine. Run again, it goes on where it stopped.

    dipole models fetch sd-turbo latent-mae

    HF_ENDPOINT names a mirror of the hub, and --from a folder that has the files, where there is no network.
    """
    fetch_and_print("models", names, to, given, extra="trainer")


@models_app.command("list")
def list_models(as_json: JsonOption = False, url: UrlOption = DEFAULT_URL, key: KeyOption = None) -> None:
    """List base models and what was made of them; where no API answers, what lies in DIPOLE_MODELS_DIR.

    Then the published models: whether their weights are on this machine, and the command that brings them.
    """
    try:
        with TrainerApi(url, key) as api:
            models = api.get("/v1/models")["data"]
    except TrainerApiError as error:
        if error.http_status not in (0, 404):
            raise
        models = list(_models_in_folder())
        err.print(f"[yellow]{printable(str(error))}; these lie in {_models_folder()}:[/]")
    columns = {
        "id": lambda model: model["id"],
        "owner": lambda model: model["owned_by"],
        "created": lambda model: format_time(model["created"]) if model["created"] else "",
    }
    print_list(models, columns, as_json=as_json)
    print_published_weights(published_weights("models"), as_json=as_json)


def _models_folder() -> str:
    return str(load_settings(PlatformSettings).models_dir.absolute())


def _models_in_folder() -> Iterator[dict[str, Any]]:
    """Every pipeline of diffusers there, as the API shows a model."""
    folder = load_settings(PlatformSettings).models_dir
    for index in sorted(folder.glob("*/model_index.json")):
        created = int(index.stat().st_mtime)
        yield {"id": index.parent.name, "object": "model", "created": created, "owned_by": "models_dir"}
