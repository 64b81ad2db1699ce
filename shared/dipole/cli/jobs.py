"""`dipole jobs …` and `dipole files …`: a trainer's REST API from the command line. Nothing here knows a database."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from dipole.cli.options import KeyOption, UrlOption
from dipole.client.trainer_api import DEFAULT_URL, TrainerApi
from dipole.errors import InvalidInput
from dipole.protocol.job_events import EvaluationProgress, StepFinished
from dipole.protocol.validation import check_storable

app = typer.Typer(no_args_is_help=True, help="Create, follow and steer training jobs.")

JobArgument = Annotated[str, typer.Argument(help="The job's id, as `create` prints it.")]

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)
STATUS_COLOURS = {"succeeded": "green", "running": "cyan", "failed": "red", "cancelled": "yellow", "paused": "yellow"}

_REWARD_PATTERN = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)"
    r"(=(?P<url>https?://(\[[0-9A-Fa-f:.]+\]|[^/:@\s]+)(:\d+(?=[/:]|$))?(/[^:\s]*)?))?"
    r"(:(?P<weight>\d*\.?\d+))?"
)


def parse_reward(text: str) -> dict[str, Any]:
    """NAME, NAME:WEIGHT, NAME=URL or NAME=URL:WEIGHT. The first number after a host is its port."""
    match = _REWARD_PATTERN.fullmatch(text)
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


@app.command("create")
def create_job(
    prompts: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="JSON lines of {prompt, metadata?}, or a .txt of prompts."),
    ] = None,
    reward: Annotated[
        list[str] | None, typer.Option(help="NAME[=URL][:WEIGHT]; repeat it. Weight 0 only watches.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Base model to train.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Number of updates.")] = None,
    candidates: Annotated[int | None, typer.Option(min=2, help="Number of images per prompt and update.")] = None,
    validation: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="File of held-out prompts, alike.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="JSON file with any field of the job; options win.")
    ] = None,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Create a job and print its id.

    Examples:

    dipole jobs create --prompts prompts.jsonl --reward shapes --steps 100

    dipole jobs create --prompts prompts.jsonl --reward shapes --reward colourfulness:0   (watched, not trained on)

    dipole jobs create --prompts prompts.jsonl --reward mine=http://127.0.0.1:9000:0.5 --config job.json

    dipole jobs watch $(dipole jobs create --prompts prompts.jsonl --reward shapes)
    """  # fmt: skip
    body = _read_config(config)
    given = {"model": model, "steps": steps, "candidates": candidates}
    body.update({name: value for name, value in given.items() if value is not None})
    if reward:
        body["rewards"] = [parse_reward(each) for each in reward]
    with TrainerApi(url, key) as api:
        if prompts is not None:
            body.pop("prompts", None)
            body["training_file"] = api.upload_file(prompts)["id"]
        if validation is not None:
            body["validation_file"] = api.upload_file(validation)["id"]
        print(api.post("/v1/fine_tuning/jobs", body)["id"])


@app.command("list")
def list_jobs(
    limit: Annotated[int, typer.Option(min=1, max=100, help="Most jobs to list, newest first.")] = 20,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """List jobs, newest first."""
    with TrainerApi(url, key) as api:
        jobs = api.get("/v1/fine_tuning/jobs", limit=limit)["data"]
    table = plain_table("id", "status", "step", "model", "rewards", "created")
    for job in jobs:
        rewards = ", ".join(f"{each['name']}:{each['weight']:g}" for each in job.get("rewards", []))
        step = f"{job['step']}/{job['steps']}"
        table.add_row(job["id"], _styled_status(job), step, job["model"], rewards, format_time(job["created_at"]))
    out.print(table)


@app.command("show")
def show_job(job: JobArgument, url: UrlOption = DEFAULT_URL, key: KeyOption = None) -> None:
    """Print everything about a job as JSON.

    dipole jobs show ftjob-… | jq .status
    """
    with TrainerApi(url, key) as api:
        print(json.dumps(api.get(_job_path(job)), indent=2, ensure_ascii=False))


@app.command("watch")
def watch_job(job: JobArgument, url: UrlOption = DEFAULT_URL, key: KeyOption = None) -> None:
    """Follow a job live until it ends. Exits with 1 when it failed or was cancelled.

    Ctrl-C stops watching, never the job. A broken connection, or a restarted API, is waited for.
    """
    with TrainerApi(url, key) as api:
        shown = api.get(_job_path(job))
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=err, transient=False) as progress:
            task = progress.add_task(shown["status"], total=shown["steps"], completed=shown["step"], note="")

            def report_break(reason: str) -> None:
                progress.console.print(f"[yellow]connection lost ({reason}); trying again[/]")

            try:
                for event in api.follow_events(job, on_break=report_break):
                    if event["kind"] == StepFinished.kind:
                        step = event["data"]["step"]
                        progress.update(task, completed=step, description="running", note=describe_step(event["data"]))
                    elif event["kind"] != EvaluationProgress.kind:
                        progress.console.print(_format_event(event))
            except KeyboardInterrupt:
                err.print(f"Stopped watching; the job goes on. See it again: dipole jobs watch {job}")
                raise typer.Exit(130) from None
        final = api.get(_job_path(job))
    out.print(_styled_status(final))
    if final["status"] != "succeeded":
        raise typer.Exit(1)


@app.command("events")
def list_events(
    job: JobArgument,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Most events to print, the latest.")] = 20,
    raw: Annotated[bool, typer.Option("--json", help="One JSON object a line, with all data.")] = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Print a job's latest events, oldest first.

    dipole jobs events ftjob-… --json --limit 100 | jq -c 'select(.kind=="step") | .data.rewards'
    """
    with TrainerApi(url, key) as api:
        found = api.get(f"{_job_path(job)}/events", limit=limit)["data"]
    for event in reversed(found):
        print(json.dumps(event, ensure_ascii=False)) if raw else out.print(_format_event(event))


@app.command("pause")
def pause_job(job: JobArgument, url: UrlOption = DEFAULT_URL, key: KeyOption = None) -> None:
    """Stop a job at its next step, with a checkpoint; `resume` goes on from there."""
    _post_action(job, "pause", url, key)


@app.command("resume")
def resume_job(job: JobArgument, url: UrlOption = DEFAULT_URL, key: KeyOption = None) -> None:
    """Let a paused job, or a failed one that has a checkpoint, go on from its last checkpoint."""
    _post_action(job, "resume", url, key)


@app.command("cancel")
def cancel_job(job: JobArgument, url: UrlOption = DEFAULT_URL, key: KeyOption = None) -> None:
    """Stop a job for good. What it has made stays."""
    _post_action(job, "cancel", url, key)


@app.command("checkpoints")
def list_checkpoints(job: JobArgument, url: UrlOption = DEFAULT_URL, key: KeyOption = None) -> None:
    """List a job's checkpoints, newest first."""
    with TrainerApi(url, key) as api:
        found = list(api.iterate_items(f"{_job_path(job)}/checkpoints"))
    table = plain_table("id", "step", "created")
    for each in found:
        table.add_row(each["id"], str(each["step_number"]), format_time(each["created_at"]))
    out.print(table)


@app.command("download")
def download_checkpoint(
    job: JobArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Zip file to write [default: JOB-step-N.zip].")
    ] = None,
    checkpoint: Annotated[str | None, typer.Option(help="A checkpoint's id; the newest if absent.")] = None,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Download a checkpoint as a LoRA that diffusers loads (`pipe.load_lora_weights`), zipped.

    dipole jobs download ftjob-… -o lora.zip
    """  # fmt: skip
    with TrainerApi(url, key) as api:
        found = api.iterate_items(f"{_job_path(job)}/checkpoints")
        chosen = [each for each in found if checkpoint in (None, each["id"])]
        if not chosen:
            raise InvalidInput(
                f"job {job} has no checkpoint {checkpoint}" if checkpoint else f"job {job} has no checkpoint yet"
            )
        target = output or Path(f"{job}-step-{chosen[0]['step_number']}.zip")
        size = api.download_file(chosen[0]["download"], target)
    out.print(f"{target} ({size / 2**20:.1f} MiB, step {chosen[0]['step_number']})")


def plain_table(*headings: str) -> Table:
    """Without lines, and never with an id cut short, however narrow the terminal."""
    table = Table(box=None)
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=heading == "id", min_width=30 if heading == "id" else None)
    return table


def _post_action(job: str, verb: str, url: str, key: str | None) -> None:
    with TrainerApi(url, key) as api:
        answer = api.post(f"{_job_path(job)}/{verb}")
    asked = "" if answer["desired"] == "run" or answer["status"] != "running" else f" ({verb} asked for)"
    out.print(_styled_status(answer) + asked)


def _job_path(job: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", job):
        raise InvalidInput(f"{job!r} is no job's id: `dipole jobs list` shows them")
    return f"/v1/fine_tuning/jobs/{job}"


def _read_config(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        body = json.loads(path.read_bytes())
    except ValueError as error:
        raise InvalidInput(f"{path} is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise InvalidInput(f"{path} must hold a JSON object with fields of a job")
    check_storable(body)
    return body


def _styled_status(job: dict[str, Any]) -> str:
    reason = job["error"] or job["waiting_for"]
    colour = STATUS_COLOURS.get(job["status"], "default")
    return f"[{colour}]{job['status']}[/]" + (f": {_printable(reason['message'])}" if reason else "")


def _format_event(event: dict[str, Any]) -> str:
    colour = {"warn": "yellow", "error": "red"}.get(event["level"], "default")
    return f"[dim]{format_time(event['created_at'])}[/] [{colour}]{_printable(event['message'])}[/]"


def describe_step(data: dict[str, Any], held_out: Collection[str] = ()) -> str:
    """What a person wants to see of a finished step."""
    parts = [
        f"{name} {value:.3f}{' (held out)' if name in held_out else ''}"
        for name, value in (data.get("rewards") or {}).items()
        if value is not None
    ]
    if data.get("images_per_s"):
        parts.append(f"{data['images_per_s']:.1f} img/s")
    if data.get("eta_s") is not None:
        minutes, seconds = divmod(round(data["eta_s"]), 60)
        parts.append(f"ETA {minutes}:{seconds:02d}")
    return "  ".join(parts)


def _printable(text: str) -> str:
    return text.replace("[", r"\[")


def format_time(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
