"""`dipole files`: upload prompts and pairs, list and delete them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dipole.cli.terminal import JsonOption, KeyOption, UrlOption, err, format_time, print_list
from dipole.client.trainer_api import DEFAULT_URL, TrainerApi, quote_segment

files_app = typer.Typer(no_args_is_help=True, help="Upload, list and delete files of prompts and pairs.")


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
def list_files(as_json: JsonOption = False, url: UrlOption = DEFAULT_URL, key: KeyOption = None) -> None:
    """List uploaded files, newest first."""
    columns = {
        "id": lambda file: file["id"],
        "name": lambda file: file["filename"],
        "lines": lambda file: f"{file['lines']} {file['kind']}",
        "bytes": lambda file: file["bytes"],
        "created": lambda file: format_time(file["created_at"]),
    }
    with TrainerApi(url, key) as api:
        print_list(api.iterate_items("/v1/files"), columns, as_json=as_json)


@files_app.command("delete")
def delete_files(
    files: Annotated[list[str], typer.Argument(help="Ids of files, as `dipole files list` shows them.", metavar="ID…")],
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Delete files. Jobs keep their prompts; pairs that a job still trains on stay."""
    with TrainerApi(url, key) as api:
        for file in files:
            print(api.delete(f"/v1/files/{quote_segment(file)}")["id"])
