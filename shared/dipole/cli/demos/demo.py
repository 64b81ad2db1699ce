"""`dipole demo`: the whole platform once, from prompts to a picture. With --people: people_demo.py.

Starts the embedded stack (or talks to a running one), uploads the tiny world's prompts, creates a DrPO job over REST,
shows it train, and compares base and result on prompts that training never saw.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from dipole.cli.demos.demo_jobs import cancel_left_jobs, create_demo_job
from dipole.cli.demos.people_demo import PeopleAddresses, run_people_demo
from dipole.cli.optional_imports import explain_missing
from dipole.cli.progress.job_progress import JobLines, describe_step
from dipole.cli.terminal import printable
from dipole.client.ratings_api import DEFAULT_RATINGS_URL
from dipole.client.trainer_api import TrainerApi
from dipole.errors import DipoleError, InvalidInput
from dipole.protocol import job_events
from dipole.tiny.job import build_demo_job, build_demo_prompts
from dipole.tiny.world import TAGS

REWARDS = ("shapes", "colourfulness")
STEPS, PEOPLE_STEPS = 60, 36
# kinds of events that are printed above the bars
TOLD = (
    job_events.RewardLeftOut.kind,
    job_events.JobPaused.kind,
    job_events.JobFailed.kind,
    job_events.RunResumed.kind,
)
console = Console(highlight=False, soft_wrap=True)


class DemoFailed(DipoleError):
    """The job did not succeed; its last word is the message."""


def run_demo(
    api: Annotated[
        str | None,
        typer.Option("--api", envvar="DIPOLE_API_URL", help="A running platform; without it one is started."),
    ] = None,
    key: Annotated[
        str | None, typer.Option(envvar="DIPOLE_API_KEY", help="Key of that platform.", show_default=False)
    ] = None,
    reward: Annotated[
        str, typer.Option(help="What to train for: shapes or colourfulness; the other is watched.")
    ] = "shapes",
    people: Annotated[
        bool, typer.Option("--people", help="Train on what you rank in the browser, instead of on a reward.")
    ] = False,
    ratings: Annotated[
        str, typer.Option(envvar="DIPOLE_RATINGS_URL", help="With --api and --people: the platform's rating service.")
    ] = DEFAULT_RATINGS_URL,
    steps: Annotated[
        int | None, typer.Option(min=2, help="Number of updates.", show_default="60; with --people 36")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the job.")] = 0,
    control: Annotated[
        bool, typer.Option("--control", help="Train on shuffled ranks, the control: what any drift would do.")
    ] = False,
    out: Annotated[
        Path, typer.Option(help="Folder for pictures, LoRA and, without --api, the platform's files.")
    ] = Path("out/demo"),
) -> None:
    """Train the embedded one-step generator with DrPO and show what changed.

    Examples:

    dipole demo                            one to four minutes on two cores

    dipole demo --reward colourfulness     another reward; watch `shapes` fall, and be told so

    dipole demo --people                   the reward is you: rank four images at a time, see what it learns

    dipole demo --api http://api:8400      on a platform that runs already
    """
    if reward not in REWARDS:
        raise InvalidInput(f"--reward {reward!r} is not one of {', '.join(REWARDS)}")
    if people and (control or reward != REWARDS[0]):
        raise InvalidInput("--people is the reward and takes no ranks but people's: leave out --reward and --control")
    out.mkdir(parents=True, exist_ok=True)
    if people:
        running = None if api is None else PeopleAddresses(api, ratings)
        ratings_key = os.environ.get("DIPOLE_RATINGS_OPERATOR_KEY") or os.environ.get("DIPOLE_RATINGS_KEY")
        if not run_people_demo(running, key, ratings_key, steps=steps or PEOPLE_STEPS, seed=seed, out=out):
            raise typer.Exit(130)
        return
    steps = steps or STEPS
    try:
        with _platform_url(api, out) as url, TrainerApi(url, key) as client:
            if api is None:
                cancel_left_jobs(client, console.print)
            method = "random" if control else "drpo"
            job = _create_job(client, out, build_demo_job(steps=steps, reward=reward, seed=seed, method=method))
            try:
                _follow_job(client, job)
            except KeyboardInterrupt:
                # or the next demo's worker would take this job up first
                client.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
                raise
            _show_results(client, job, out, reward, "random ranks" if control else "DrPO")
    except KeyboardInterrupt:
        console.print("Stopped: the job is cancelled" + (", every process gone." if api is None else "."))
        raise typer.Exit(130) from None


@contextmanager
def _platform_url(api: str | None, out: Path) -> Iterator[str]:
    """The URL of a platform: the given one, or an embedded stack for as long as it is needed."""
    if api is not None:
        yield api
        return
    from dipole.cli.serve import running_stack

    with explain_missing("embedded"):
        from dipole.stack.stack import EMBEDDED_REWARDS
    with running_stack(console, out / "platform", EMBEDDED_REWARDS) as stack:
        yield stack.api_url


def _create_job(client: TrainerApi, out: Path, job: dict[str, Any]) -> dict[str, Any]:
    files = {"training_file": out / "prompts-train.jsonl", "validation_file": out / "prompts-held-out.jsonl"}
    for field, path in files.items():
        lines = build_demo_prompts(held_out=field == "validation_file")
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        console.print(f"Wrote {len(lines)} prompts to {path}")
    created = create_demo_job(client, job, files)
    names = ", ".join(f"{r['name']} (held out)" if r["weight"] == 0 else r["name"] for r in created["rewards"])
    console.print(f"Created {created['id']}: {job['steps']} updates of {job['model']}, rewards {names}\n")
    return created


def _follow_job(client: TrainerApi, job: dict[str, Any]) -> None:
    """Live progress until the job has ended. Raises DemoFailed when it did not succeed."""
    held_out = {reward["name"] for reward in job["rewards"] if reward["weight"] == 0}
    if not console.is_terminal:
        with JobLines(lambda line: print(line, flush=True), held_out=held_out) as lines:
            for event in client.follow_events(job["id"], on_break=lines.report_break):
                lines.show(event)
    else:
        _show_bars(client, job, held_out)
    ended = client.get(f"/v1/fine_tuning/jobs/{job['id']}")
    if ended["status"] != "succeeded":
        raise DemoFailed(
            f"job {job['id']} {ended['status']}: {(ended.get('error') or {}).get('message', 'see its events')}"
        )


def _show_bars(client: TrainerApi, job: dict[str, Any], held_out: set[str]) -> None:
    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        evaluating = progress.add_task("evaluate", total=None, note="")
        training = progress.add_task("train", total=job["steps"], note="", start=False)
        for event in client.follow_events(job["id"]):
            kind, data = event["kind"], event["data"] or {}
            if kind == job_events.EvaluationProgress.kind:
                note = f"held-out prompts at step {data['step']}"
                progress.update(evaluating, completed=data["prompts_done"], total=data["prompts"], note=note)
            elif kind == job_events.StepFinished.kind:
                progress.start_task(training)
                progress.update(training, completed=data["step"], note=describe_step(data, held_out))
            elif kind in TOLD:
                progress.console.print(f"[yellow]{printable(event['message'])}[/]")


def _show_results(client: TrainerApi, job: dict[str, Any], out: Path, reward: str, name: str) -> None:
    """Download what the job made, print the table, and say where things are."""
    raw = out / "job"
    shutil.rmtree(raw, ignore_errors=True)
    for artifact in client.get(f"/v1/fine_tuning/jobs/{job['id']}/artifacts")["data"]:
        target = raw / artifact["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        client.download_file(artifact["url"], target)
    evaluations = sorted((raw / "evaluation").glob("step-*.json"), key=lambda path: int(path.stem[5:]))
    base, tuned = (json.loads(path.read_text()) for path in (evaluations[0], evaluations[-1]))
    console.print()
    console.print(_results_table(base, tuned, name))
    if tuned["diversity_ratio"] is not None:
        console.print(f"diversity: {tuned['diversity_ratio']:.2f} of the base's")
    events = list(client.iterate_items(f"/v1/fine_tuning/jobs/{job['id']}/events"))
    for event in events:
        if event["kind"] == job_events.RewardHackingFound.kind:
            console.print(f"[bold yellow]{printable(event['message'])}[/]")
            break
    lora = out / "lora"
    shutil.rmtree(lora, ignore_errors=True)
    shutil.copytree(raw / "export", lora)
    written = {
        "before and after": Path(shutil.copyfile(lora / "samples.png", out / "before_after.png")),
        "curves": Path(shutil.copyfile(lora / "curves.png", out / "curves.png")),
        "report, for a browser": Path(shutil.copyfile(lora / "report.html", out / "report.html")),
        "LoRA for diffusers": lora / "pytorch_lora_weights.safetensors",
        "figures and every score": raw / "evaluation",
    }
    console.print()
    for what, path in written.items():
        console.print(f"{what + ':':26}{path}")


def _results_table(base: dict[str, Any], tuned: dict[str, Any], name: str) -> Table:
    """Strict and graded `shapes` per category, and every reward, on held-out prompts; ± is a 95 % interval."""
    count = len(tuned["prompts"])
    images = len(next(iter(tuned["prompts"][0]["scores"].values())))
    title = f"{count} held-out prompts × {images} noises, the same for both; ± 95 % over prompts"
    table = Table(title=title, title_justify="left")
    table.add_column("score")
    for heading in ("prompts", "base", name, "difference"):
        table.add_column(heading, justify="right", no_wrap=True)
    for score in ("shapes.strict", "shapes.graded"):
        _add_row(table, score.replace(".", ", "), base["scores"].get(score), tuned["scores"].get(score), style="bold")
        for tag in TAGS:
            _add_row(table, f"  {tag}", base["by_tag"].get(tag, {}).get(score), tuned["by_tag"].get(tag, {}).get(score))
        table.add_section()
    for score in REWARDS:
        _add_row(table, score, base["scores"].get(score), tuned["scores"].get(score))
    return table


def _add_row(table: Table, label: str, base: Any, tuned: Any, *, style: str = "") -> None:
    if base and tuned and "mean" in base and "mean" in tuned:
        cells = [_format_figure(base), _format_figure(tuned), _format_figure(tuned["difference"], sign=True)]
        table.add_row(label, str(tuned["prompts"]), *cells, style=style)


def _format_figure(value: dict[str, Any], *, sign: bool = False) -> str:
    # one prompt has no interval
    if value["low"] is None:
        return f"{value['mean']:+.3f}" if sign else f"{value['mean']:.3f}"
    half = (value["high"] - value["low"]) / 2
    return f"{value['mean']:+.3f} ± {half:.3f}" if sign else f"{value['mean']:.3f} ± {half:.3f}"
