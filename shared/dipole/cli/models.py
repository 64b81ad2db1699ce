"""`dipole models`: what jobs may train and what may be drawn from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from dipole.cli.options import JsonOption, KeyOption, UrlOption
from dipole.cli.tables import err, format_time, print_list, printable
from dipole.client.trainer_api import DEFAULT_URL, TrainerApi, TrainerApiError
from dipole.settings import PlatformSettings, load_settings

app = typer.Typer(no_args_is_help=True, help="List models.")


@app.callback()
def models_group() -> None:
    """List models."""  # makes `list` a word that has to be said


@app.command("list")
def list_models(as_json: JsonOption = False, url: UrlOption = DEFAULT_URL, key: KeyOption = None) -> None:
    """List base models and what was made of them; where no API answers, what lies in DIPOLE_MODELS_DIR."""
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


def _models_folder() -> str:
    return str(load_settings(PlatformSettings).models_dir.absolute())


def _models_in_folder() -> Iterator[dict[str, Any]]:
    """Every pipeline of diffusers there, as the API shows a model."""
    folder = load_settings(PlatformSettings).models_dir
    for index in sorted(folder.glob("*/model_index.json")):
        created = int(index.stat().st_mtime)
        yield {"id": index.parent.name, "object": "model", "created": created, "owned_by": "models_dir"}
