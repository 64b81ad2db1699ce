"""`dipole doctor`: whether a set-up is right, a line a check, and what to do where it is not."""

from __future__ import annotations

import email.utils
import importlib.metadata
import itertools
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Annotated, Any

import typer

from dipole.cli.optional_imports import import_optional
from dipole.cli.terminal import JsonOption, KeyOption, out, printable
from dipole.client.trainer_api import TrainerApi, TrainerApiError, quote_segment
from dipole.errors import ConfigurationError
from dipole.settings import PlatformSettings, load_settings
from dipole.stack.findings import Finding, compare_clocks, compare_versions

COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


def examine_setup(
    url: Annotated[
        str | None,
        typer.Option("--api", help="URL of a trainer API: look at what it tells instead of at this machine."),
    ] = None,
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a set-up and say what to do: settings, databases, Redis, artifacts, endpoints, clocks, disks, weights,
    processes, versions.

    It reads the DIPOLE_ variables of this machine; with --api it asks a trainer's API. Exits with 1 where there is a
    problem.
    """
    if url is None:
        findings: Iterator[Finding] = itertools.chain(
            import_optional("dipole_trainer.doctor.checks", "api").check_setup(), check_ratings()
        )
    else:
        findings = ask_api(url, key)
    has_problem = False
    for found in findings:
        has_problem |= found.status == "problem"
        if as_json:
            print(json.dumps(asdict(found), ensure_ascii=False))
            continue
        out.print(f"[{COLOURS[found.status]}]{found.status:7}[/] {printable(f'{found.check}: {found.message}')}")
        if found.fix is not None:
            out.print(f"        {printable(found.fix)}")
    if has_problem:
        raise typer.Exit(1)


def ask_api(url: str, key: str | None) -> Iterator[Finding]:
    """What can be seen over REST: the API, its clock, versions, workers and endpoints."""
    with TrainerApi(url, key) as api:
        try:
            api_version = api.get("/readyz").get("version")
            date = api.fetch_date()
            workers, rewards = api.get("/v1/workers")["data"], api.get("/v1/rewards")["data"]
        except TrainerApiError as error:
            yield Finding("api", "problem", str(error), "start it, or mend DIPOLE_API_URL and DIPOLE_API_KEY")
            return
        yield Finding("api", "ok", f"{api.url} is ready")
        if date is not None:
            yield compare_clocks("api's clock", email.utils.parsedate_to_datetime(date).timestamp() + 0.5, time.time())
        versions = {"the API": api_version, **{f"worker {each['id']}": each.get("version") for each in workers}}
        yield compare_versions("versions", versions, importlib.metadata.version("dipole"))
        if workers:
            yield Finding("workers", "ok", f"{len(workers)} alive")
        else:
            yield Finding("workers", "problem", "none lives: jobs stay queued", "run `dipole serve worker`")
        if not rewards:
            yield Finding("rewards", "warning", "none is registered", "run `dipole rewards register NAME=URL`")
        with ThreadPoolExecutor(max_workers=8) as pool:
            yield from pool.map(lambda reward: _check_endpoint(api, reward["name"]), rewards)
    message = "databases, Redis, artifacts, disks and weights: not checked, an API does not show them"
    yield Finding("the rest", "ok", f"{message}; `dipole doctor` where the processes run does")


def check_ratings() -> Iterator[Finding]:
    """The ratings database, if settings name one, or it lies where it does unless they do."""
    check = "ratings database"
    try:
        local = load_settings(PlatformSettings).home / "ratings.db"
    except ConfigurationError:
        return  # the settings' own line says so
    url = os.environ.get("DIPOLE_RATINGS_DATABASE_URL") or (f"sqlite:///{local}" if local.is_file() else None)
    if url is None:
        yield Finding(check, "ok", f"not checked: DIPOLE_RATINGS_DATABASE_URL is not set, and there is no {local}")
        return
    try:
        ratings = import_optional("dipole_ratings.database.engine", "ratings")
    except ConfigurationError as error:
        yield Finding(check, "warning", f"not checked: {error}", "run `dipole doctor` where the rating service runs")
        return
    checks = import_optional("dipole_trainer.doctor.checks", "api")
    yield from checks.check_database(check, url, ratings.RATINGS_DATABASE, ratings.MIGRATIONS)


def _check_endpoint(api: TrainerApi, name: str) -> Finding:
    fix = "start it, or register where it is now: `dipole rewards register NAME=URL`"
    try:
        checked: dict[str, Any] = api.post(f"/v1/rewards/{quote_segment(name)}/check")
    except TrainerApiError as error:
        return Finding(f"reward {name}", "problem", str(error), fix)
    if not checked["ok"]:
        return Finding(f"reward {name}", "problem", f"{checked['url']}: {checked['problem']}", fix)
    info = checked["info"] or {}
    return Finding(
        f"reward {name}", "ok", f"ready at {checked['url']}: {info.get('model')} {info.get('model_revision')}"
    )
