"""`dipole jobs …`: a trainer's REST API from the command line. Nothing here knows a database."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from dipole.cli.progress.job_progress import JobBar, JobLines, format_event
from dipole.cli.terminal import (
    JsonOption,
    KeyOption,
    UrlOption,
    err,
    format_time,
    out,
    print_list,
    printable,
    status_reason,
    styled_status,
)
from dipole.client.trainer_api import DEFAULT_URL, ENDED, TrainerApi, TrainerApiError
from dipole.errors import InvalidInput
from dipole.protocol.validation import check_storable

app = typer.Typer(no_args_is_help=True, help="Create, follow and steer training jobs.")

JobArgument = Annotated[str, typer.Argument(help="The job's id, as `create` prints it.")]

REPORT_PATH = "export/report.html"  # of a job's artifacts
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
    model: Annotated[str | None, typer.Option(help="A base, or what an earlier job made (ft:…).")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Number of updates.")] = None,
    candidates: Annotated[int | None, typer.Option(min=2, help="Number of images per prompt and update.")] = None,
    validation: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="File of held-out prompts, alike.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="JSON file with any field of the job; options win.")
    ] = None,
    allow_unready: Annotated[
        bool, typer.Option("--allow-unready", help="Create the job although rewards do not say that they are ready.")
    ] = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Create a job and print its id; what is to be said of it goes to standard error.

    Examples:

    dipole jobs create --prompts prompts.jsonl --reward shapes --steps 100

    dipole jobs create --prompts prompts.jsonl --reward shapes --reward colourfulness:0   (watched, not trained on)

    dipole jobs create --prompts prompts.jsonl --reward mine=http://127.0.0.1:9000:0.5 --config job.json

    dipole jobs watch $(dipole jobs create --prompts prompts.jsonl --reward shapes)
    """  # fmt: skip
    body = read_job_file(config) if config is not None else {}
    given = {"model": model, "steps": steps, "candidates": candidates}
    body.update({name: value for name, value in given.items() if value is not None})
    if reward:
        body["rewards"] = [parse_reward(each) for each in reward]
    files = {"training_file": prompts, "validation_file": validation}
    if prompts is not None:
        body.pop("prompts", None)
    if allow_unready:
        body["allow_unready"] = True
    with TrainerApi(url, key) as api:
        job = api.create_job(body, {field: path for field, path in files.items() if path is not None})
    for warning in job.get("warnings", []):
        err.print(f"[yellow]warning: {printable(warning)}[/]")
    print(job["id"])


@app.command("list")
def list_jobs(
    limit: Annotated[int, typer.Option(min=1, max=100, help="Most jobs to list, newest first.")] = 20,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """List jobs, newest first. All of a reason: `dipole jobs show`.

    dipole jobs list --json | jq -r 'select(.status=="failed") | .id'
    """
    with TrainerApi(url, key) as api:
        jobs = api.get("/v1/fine_tuning/jobs", limit=limit)["data"]
    columns = {
        "id": lambda job: job["id"],
        "status": lambda job: job["status"],
        "step": lambda job: f"{job['step']}/{job['steps']}",
        "model": lambda job: job["model"],
        "rewards": lambda job: ", ".join(f"{each['name']}:{each['weight']:g}" for each in job.get("rewards", [])),
        "created": lambda job: format_time(job["created_at"]),
        "reason": status_reason,
    }
    print_list(jobs, columns, as_json=as_json)


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

    On a terminal a bar; piped or in a log, a plain line a step. Ctrl-C stops watching, never the job. A broken
    connection, or a restarted API, is waited for.

    dipole jobs watch ftjob-… | tee train.log
    """
    on_terminal = err.is_terminal and out.is_terminal
    with TrainerApi(url, key) as api:
        shown = api.get(_job_path(job))
        held_out = {each["name"] for each in shown.get("rewards", []) if each["weight"] == 0}
        lines = JobLines(lambda line: print(line, flush=True), held_out=held_out)
        with JobBar(err, shown) if on_terminal else lines as progress:
            try:
                for event in api.follow_events(job, on_break=progress.report_break):
                    progress.show(event)
            except KeyboardInterrupt:
                err.print(f"Stopped watching; the job goes on. See it again: dipole jobs watch {job}")
                raise typer.Exit(130) from None
        final = api.get(_job_path(job))
    out.print(styled_status(final))
    if final["status"] != "succeeded":
        raise typer.Exit(1)


@app.command("events")
def list_events(
    job: JobArgument,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Most events to print, the latest.")] = 20,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Print a job's latest events, oldest first.

    dipole jobs events ftjob-… --json --limit 100 | jq -c 'select(.kind=="step") | .data.rewards'
    """
    with TrainerApi(url, key) as api:
        found = api.get(f"{_job_path(job)}/events", limit=limit)["data"]
    for event in reversed(found):
        print(json.dumps(event, ensure_ascii=False)) if as_json else out.print(format_event(event))


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


@app.command("weights")
def change_weights(
    job: JobArgument,
    weights: Annotated[list[str], typer.Argument(metavar="REWARD=WEIGHT…", help="New weights, as in shapes=0.5.")],
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Change the weights of a job's rewards from its next step on; 0 holds a reward out, and below 0 lower is better.

    dipole jobs weights ftjob-… shapes=0.5 colourfulness=-1
    """
    asked = dict(parse_weight(each) for each in weights)
    with TrainerApi(url, key) as api:
        answer = api.patch(f"{_job_path(job)}/rewards", {"weights": asked})
    present = {each["name"]: each["weight"] for each in answer["rewards"]}
    for change in answer["weight_changes"]:
        present |= change["weights"]
    waiting = any(change["step"] is None for change in answer["weight_changes"])
    told = ", ".join(f"{name} {weight:g}" for name, weight in present.items())
    out.print(f"weights from the next step on: {told}" if waiting else f"weights: {told}", markup=False)


def parse_weight(text: str) -> tuple[str, float]:
    """REWARD=WEIGHT."""
    name, equals, value = text.partition("=")
    try:
        weight = float(value)
    except ValueError:
        weight = math.nan
    if not name or not equals or not math.isfinite(weight):
        raise InvalidInput(f"{text!r} is not REWARD=WEIGHT with a number, as in shapes=0.5")
    return name, weight


@app.command("checkpoints")
def list_checkpoints(
    job: JobArgument, as_json: JsonOption = False, url: UrlOption = DEFAULT_URL, key: KeyOption = None
) -> None:
    """List a job's checkpoints, newest first."""
    columns = {
        "id": lambda each: each["id"],
        "step": lambda each: each["step_number"],
        "created": lambda each: format_time(each["created_at"]),
    }
    with TrainerApi(url, key) as api:
        print_list(api.iterate_items(f"{_job_path(job)}/checkpoints"), columns, as_json=as_json)


@app.command("download")
def download_checkpoint(
    job: JobArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Zip file to write.", show_default="JOB-step-N.zip")
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


@app.command("report")
def download_report(
    job: JobArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="HTML file to write.", show_default="JOB-report.html")
    ] = None,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
) -> None:
    """Download the report of a job that has ended: one page with curves, images and tables, which needs no network.

    dipole jobs report ftjob-… -o report.html
    """
    target = output or Path(f"{job}-report.html")
    with TrainerApi(url, key) as api:
        try:
            size = api.download_file(f"{_job_path(job)}/artifacts/{REPORT_PATH}", target)
        except TrainerApiError as error:
            if error.http_status != 404:
                raise
            status = api.get(_job_path(job))["status"]
            why = (
                "it ended before its first evaluation, or under an earlier version"
                if status in ENDED
                else f"it is {status}, and a report is written when it ends"
            )
            raise InvalidInput(f"job {job} has no report: {why}") from error
    out.print(f"{target} ({size / 2**20:.1f} MiB): open it in a browser", markup=False)


def _post_action(job: str, verb: str, url: str, key: str | None) -> None:
    with TrainerApi(url, key) as api:
        answer = api.post(f"{_job_path(job)}/{verb}")
    asked = "" if answer["desired"] == "run" or answer["status"] != "running" else f" ({verb} asked for)"
    out.print(styled_status(answer) + asked)


def _job_path(job: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", job):
        raise InvalidInput(f"{job!r} is no job's id: `dipole jobs list` shows them")
    return f"/v1/fine_tuning/jobs/{job}"


def read_job_file(path: Path) -> dict[str, Any]:
    """The fields of a job, from a file of JSON. Raises InvalidInput that names it."""
    try:
        body = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path} is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise InvalidInput(f"{path} must hold a JSON object with fields of a job")
    check_storable(body)
    return body
