"""`dipole files`: upload prompts and pairs, list them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dipole.cli.jobs import err, format_time, out, plain_table
from dipole.cli.options import KeyOption, UrlOption
from dipole.client.trainer_api import DEFAULT_URL, TrainerApi

files_app = typer.Typer(no_args_is_help=True, help="Upload and list prompt files.")


@files_app.command("upload")
def upload_file(
    path: Annotated[
        Path,
        typer.Argument(exists=True, dir_okay=False, help="JSON lines, .txt of prompts, Parquet, zip or tar of pairs."),
    ],
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Upload prompts or pairs, and print the file's id; on standard error, what it was taken for.

    Each line is a JSON object: `{"prompt": "a photo of a red square", "metadata": {"tag": "single_object"}}`, or with
    the base64 of two images `{"prompt": "a red square", "chosen": "…", "rejected": "…"}`. Where `chosen` and `rejected`
    are paths, upload a zip or tar of the lines and their images.
    """
    with TrainerApi(url, key) as api:
        file = api.upload_file(path)
    err.print(f"{file['lines']} {file['kind']}")
    print(file["id"])


@files_app.command("list")
def list_files(url: UrlOption = DEFAULT_URL, key: KeyOption = None) -> None:
    """List uploaded files, newest first."""
    table = plain_table("id", "name", "prompts", "bytes", "created")
    with TrainerApi(url, key) as api:
        for file in api.iterate_items("/v1/files"):
            table.add_row(
                file["id"], file["filename"], str(file["lines"]), str(file["bytes"]), format_time(file["created_at"])
            )
    out.print(table)
