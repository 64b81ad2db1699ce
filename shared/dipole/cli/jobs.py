"""`dipole jobs …` and `dipole files …`: a trainer's REST API from the command line. Nothing here knows a database."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from dipole.cli.options import Key, Url
from dipole.client.trainer_api import DEFAULT_URL, Api
from dipole.errors import InvalidInput

app = typer.Typer(no_args_is_help=True, help="Create, follow and steer training jobs.")

Job = Annotated[str, typer.Argument(help="The job's id, as `create` prints it.")]

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)
COLOURS = {"succeeded": "green", "running": "cyan", "failed": "red", "cancelled": "yellow", "paused": "yellow"}

_REWARD = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)"
    r"(=(?P<url>https?://(\[[0-9A-Fa-f:.]+\]|[^/:@\s]+)(:\d+(?=[/:]|$))?(/[^:\s]*)?))?"
    r"(:(?P<weight>\d*\.?\d+))?"
)


def parse_reward(text: str) -> dict[str, Any]:
    """NAME, NAME:WEIGHT, NAME=URL or NAME=URL:WEIGHT. The first number after a host is its port."""
    match = _REWARD.fullmatch(text)
    if match is None:
        raise InvalidInput(
            f"--reward {text!r} is not NAME[=URL][:WEIGHT], as in shapes or mine=http://127.0.0.1:9000:0.5"
        )
    reward: dict[str, Any] = {"name": match["name"]}
    if match["url"]:
        reward["url"] = match["url"]
    if match["weight"]:
        reward["weight"] = float(match["weight"])
    return reward


@app.command()
def create(
    prompts: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="JSONL file: {prompt, metadata?} a line.")
    ] = None,
    reward: Annotated[
        list[str] | None, typer.Option(help="NAME[=URL][:WEIGHT]; repeat it. Weight 0 only watches.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Base model.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Updates.")] = None,
    candidates: Annotated[int | None, typer.Option(min=2, help="Images per prompt and update.")] = None,
    validation: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="JSONL file of held-out prompts.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="JSON file with any field of the job; options win.")
    ] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Create a job and print its id.

    Examples:

    dipole jobs create --prompts prompts.jsonl --reward shapes --steps 100

    dipole jobs create --prompts prompts.jsonl --reward shapes --reward colourfulness:0   (watched, not trained on)

    dipole jobs create --prompts prompts.jsonl --reward mine=http://127.0.0.1:9000:0.5 --config job.json

    dipole jobs watch $(dipole jobs create --prompts prompts.jsonl --reward shapes)
    """  # fmt: skip
    body = _config(config)
    given = {"model": model, "steps": steps, "candidates": candidates}
    body.update({name: value for name, value in given.items() if value is not None})
    if reward:
        body["rewards"] = [parse_reward(each) for each in reward]
    with Api(url, key) as api:
        if prompts is not None:
            body.pop("prompts", None)
            body["training_file"] = api.upload(prompts)["id"]
        if validation is not None:
            body["validation_file"] = api.upload(validation)["id"]
        print(api.post("/v1/fine_tuning/jobs", body)["id"])


@app.command("list")
def list_jobs(
    limit: Annotated[int, typer.Option(min=1, max=100, help="At most so many, newest first.")] = 20,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """List jobs, newest first."""
    with Api(url, key) as api:
        jobs = api.get("/v1/fine_tuning/jobs", limit=limit)["data"]
    table = _table("id", "status", "step", "model", "rewards", "created")
    for job in jobs:
        rewards = ", ".join(f"{each['name']}:{each['weight']:g}" for each in job["rewards"])
        step = f"{job['step']}/{job['steps']}"
        table.add_row(job["id"], _status(job), step, job["model"], rewards, _time(job["created_at"]))
    out.print(table)


@app.command()
def show(job: Job, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Print everything about a job as JSON.

    dipole jobs show ftjob-… | jq .status
    """
    with Api(url, key) as api:
        print(json.dumps(api.get(_path(job)), indent=2, ensure_ascii=False))


@app.command()
def watch(job: Job, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Follow a job live until it ends. Exits with 1 when it failed or was cancelled.

    Ctrl-C stops watching, never the job. A broken connection, or a restarted API, is waited for.
    """
    with Api(url, key) as api:
        shown = api.get(_path(job))
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=err, transient=False) as progress:
            task = progress.add_task(shown["status"], total=shown["steps"], completed=shown["step"], note="")

            def broken(reason: str) -> None:
                progress.console.print(f"[yellow]connection lost ({reason}); trying again[/]")

            try:
                for event in api.follow(job, on_break=broken):
                    if event["kind"] == "step":
                        step = event["data"]["step"]
                        progress.update(task, completed=step, description="running", note=_note(event["data"]))
                    elif event["kind"] != "evaluating":
                        progress.console.print(_line(event))
            except KeyboardInterrupt:
                err.print(f"Stopped watching; the job goes on. See it again: dipole jobs watch {job}")
                raise typer.Exit(130) from None
        final = api.get(_path(job))
    out.print(_status(final))
    if final["status"] != "succeeded":
        raise typer.Exit(1)


@app.command()
def events(
    job: Job,
    limit: Annotated[int, typer.Option(min=1, max=100, help="At most so many, the latest.")] = 20,
    raw: Annotated[bool, typer.Option("--json", help="One JSON object a line, with all data.")] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Print a job's latest events, oldest first.

    dipole jobs events ftjob-… --json --limit 100 | jq -c 'select(.kind=="step") | .data.rewards'
    """
    with Api(url, key) as api:
        found = api.get(f"{_path(job)}/events", limit=limit)["data"]
    for event in reversed(found):
        print(json.dumps(event, ensure_ascii=False)) if raw else out.print(_line(event))


@app.command()
def pause(job: Job, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Stop a job at its next step, with a checkpoint; `resume` goes on from there."""
    _steer(job, "pause", url, key)


@app.command()
def resume(job: Job, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Let a paused job go on from its last checkpoint."""
    _steer(job, "resume", url, key)


@app.command()
def cancel(job: Job, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Stop a job for good. What it has made stays."""
    _steer(job, "cancel", url, key)


@app.command()
def checkpoints(job: Job, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """List a job's checkpoints, newest first."""
    with Api(url, key) as api:
        found = list(api.pages(f"{_path(job)}/checkpoints"))
    table = _table("id", "step", "created")
    for each in found:
        table.add_row(each["id"], str(each["step_number"]), _time(each["created_at"]))
    out.print(table)


@app.command()
def download(
    job: Job,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Zip file to write [default: JOB-step-N.zip].")
    ] = None,
    checkpoint: Annotated[str | None, typer.Option(help="A checkpoint's id; the newest if absent.")] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Download a checkpoint as a LoRA that diffusers loads (`pipe.load_lora_weights`), zipped.

    dipole jobs download ftjob-… -o lora.zip
    """  # fmt: skip
    with Api(url, key) as api:
        found = api.pages(f"{_path(job)}/checkpoints")
        chosen = [each for each in found if checkpoint in (None, each["id"])]
        if not chosen:
            raise InvalidInput(
                f"job {job} has no checkpoint {checkpoint}" if checkpoint else f"job {job} has no checkpoint yet"
            )
        target = output or Path(f"{job}-step-{chosen[0]['step_number']}.zip")
        size = api.download(chosen[0]["download"], target)
    out.print(f"{target} ({size / 2**20:.1f} MiB, step {chosen[0]['step_number']})")


def _table(*headings: str) -> Table:
    """Without lines, and never with an id cut short, however narrow the terminal."""
    table = Table(box=None)
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=heading == "id", min_width=30 if heading == "id" else None)
    return table


def _steer(job: str, verb: str, url: str, key: str | None) -> None:
    with Api(url, key) as api:
        answer = api.post(f"{_path(job)}/{verb}")
    asked = "" if answer["desired"] == "run" or answer["status"] != "running" else f" ({verb} asked for)"
    out.print(_status(answer) + asked)


def _path(job: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", job):
        raise InvalidInput(f"{job!r} is no job's id: `dipole jobs list` shows them")
    return f"/v1/fine_tuning/jobs/{job}"


def _config(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        body = json.loads(path.read_text())
    except ValueError as error:
        raise InvalidInput(f"{path} is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise InvalidInput(f"{path} must hold a JSON object with fields of a job")
    return body


def _status(job: dict[str, Any]) -> str:
    reason = job["error"] or job["waiting_for"]
    colour = COLOURS.get(job["status"], "default")
    return f"[{colour}]{job['status']}[/]" + (f": {_plain(reason['message'])}" if reason else "")


def _line(event: dict[str, Any]) -> str:
    colour = {"warn": "yellow", "error": "red"}.get(event["level"], "default")
    return f"[dim]{_time(event['created_at'])}[/] [{colour}]{_plain(event['message'])}[/]"


def _note(data: dict[str, Any]) -> str:
    """What a person wants to see of a step."""
    parts = [f"{name} {value:.3f}" for name, value in (data.get("rewards") or {}).items() if value is not None]
    if data.get("images_per_s"):
        parts.append(f"{data['images_per_s']:.1f} img/s")
    if data.get("eta_s") is not None:
        parts.append(f"{data['eta_s']:.0f} s left")
    return "  ".join(parts)


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def _time(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
