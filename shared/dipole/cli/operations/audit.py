"""`dipole audit`: who changed what on a platform, and when."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer

from dipole.cli.terminal import AdminKeyOption, JsonOption, UrlOption, format_time, print_list
from dipole.client.trainer_api import DEFAULT_URL, TrainerApi


def list_audit(
    job: Annotated[str | None, typer.Option(help="Only what was about the job with this id.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most entries to print.")] = 50,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: AdminKeyOption = None,
) -> None:
    """List the requests that changed something, or were refused, newest first."""
    columns = {
        "when": lambda entry: format_time(entry["created_at"]),
        "who": lambda entry: entry["caller_name"],
        "what": lambda entry: f"{entry['method']} {entry['path']}",
        "status": lambda entry: entry["status"],
        "job": lambda entry: entry["job_id"] or "",
        "request": lambda entry: entry["request_id"],
    }
    with TrainerApi(url, key) as api:
        print_list(islice(api.iterate_items("/v1/audit", job_id=job), limit), columns, as_json=as_json)
