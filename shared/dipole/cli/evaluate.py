"""`dipole eval`: several models or checkpoints side by side on the same prompts and noises, and what surely differs.

It runs here, on this machine's weights, with the platform's settings, Redis and rank workers; no job is made.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from dipole.cli.optional_imports import import_optional
from dipole.cli.progress.waiting import ShownWait, format_minutes
from dipole.cli.terminal import err
from dipole.settings import PlatformSettings, load_settings

console = Console(highlight=False, soft_wrap=True)
SIGNIFICANCE_STYLES = {1: "bold green", 0: "", -1: "bold red"}


def evaluate_models(
    model: Annotated[
        list[str],
        typer.Option(
            help="A base model, a job's id (its newest checkpoint), JOB:STEP, a checkpoint's id, a fine-tuned model's "
            "name, or a checkpoint's folder. Repeat it: differences are to the first."
        ),
    ],
    prompts: Annotated[str, typer.Option(help="JSONL file of {prompt, metadata?} a line, or an uploaded file's id.")],
    reward: Annotated[list[str], typer.Option(help="A registered reward, or NAME=URL; repeat it.")],
    images: Annotated[
        int, typer.Option(min=1, max=64, help="Number of images of each prompt, each of a noise of its own.")
    ] = 4,
    seed: Annotated[int, typer.Option(help="Seed of the noises; a job's evaluations use 1234.")] = 1234,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only so many prompts, the first.")] = None,
    features: Annotated[
        str, typer.Option(help="Space that diversity is measured in, as a job's features.type; auto is the base's own.")
    ] = "auto",
    trained: Annotated[
        list[str] | None,
        typer.Option(help="A reward that the models were trained on; repeat it. Known of jobs. Others are held out."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1. Default: cuda where there is one.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16 or fp16, for all. Default: as the first trained model was trained.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that one prompt's ranking may take.")] = 300.0,
    out: Annotated[Path, typer.Option(help="Folder for evaluation.json, table.md and contact-sheet.png.")] = Path(
        "out/eval"
    ),
) -> None:
    """Compare models and checkpoints on the same prompts and noises.

    dipole eval --model tiny-turbo --model ftjob-… --prompts prompts.jsonl --reward shapes --reward colourfulness
    """
    from dipole import logs

    logs.configure_logging("eval", level="ERROR")  # what goes wrong is told below the table, not across the bars
    remarks = import_optional("transformers.utils.logging", "trainer")
    remarks.set_verbosity_error()
    remarks.disable_progress_bar()
    comparison = import_optional("dipole_trainer.comparison.comparison", "trainer")
    asked = {
        "models": model, "prompts": prompts, "rewards": reward, "images": images, "seed": seed, "limit": limit,
        "features": features, "trained": trained or (), "device": device, "precision": precision, "timeout_s": timeout,
    }  # fmt: skip
    with ShownWait(err, "Loading the models"):
        prepared = comparison.prepare_comparison(load_settings(PlatformSettings), **asked)
    with prepared, _ProgressBars(len(model), len(prepared.spec.prompts), images) as bars:
        evaluation, found = prepared.run(bars.show)
    written = comparison.write_comparison(out, evaluation, found)
    _print_tables(import_optional("dipole_trainer.comparison.table", "trainer"), evaluation)
    for note in evaluation["notes"]:
        console.print(f"[bold yellow]{escape(note)}[/]")
    for what, path in written.items():
        console.print(f"{what + ':':26}{path}")


LINE_S = 10.0  # between two lines on how far it is, off a terminal


class _ProgressBars:
    """Images drawn and prompts ranked, over all models: bars, or off a terminal a line now and then."""

    def __init__(self, models: int, prompts: int, images: int) -> None:
        columns = (
            TextColumn("{task.description:>15}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        self._progress = Progress(*columns, console=console)
        self._drawn = self._progress.add_task("images drawn", total=models * prompts * images, note="")
        self._ranked = self._progress.add_task("prompts ranked", total=models * prompts, note="")
        self._totals = models * prompts * images, models * prompts
        self._began = time.monotonic()
        self._told = self._began

    def __enter__(self) -> _ProgressBars:
        if console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, model: str, drawn: int, ranked: int) -> None:
        self._progress.update(self._drawn, completed=drawn, note=escape(model))
        self._progress.update(self._ranked, completed=ranked)
        if not console.is_terminal and time.monotonic() - self._told >= LINE_S:
            self._told = time.monotonic()
            images, prompts = self._totals
            err.print(
                f"{format_minutes(self._told - self._began)}: {drawn} of {images} images drawn, {ranked} of {prompts} "
                f"prompts ranked; now {escape(model)}"
            )


def _print_tables(lines: Any, evaluation: Any) -> None:
    """All models in one table where the terminal is wide enough, else a table for each with the baseline."""
    first, *others = evaluation["models"]
    tables = [_comparison_table(lines, evaluation)]
    if _measure_width(tables[0]) > console.width and len(others) > 1:
        tables = [_comparison_table(lines, {**evaluation, "models": [first, other]}) for other in others]
    for table in tables:
        Console(width=_measure_width(table), highlight=False).print(table)


def _measure_width(table: Table) -> int:
    return Measurement.get(console, console.options.update(max_width=10_000), table).maximum


def _comparison_table(lines: Any, evaluation: Any) -> Table:
    table = Table(title=lines.table_title(evaluation), title_justify="left")
    for index, heading in enumerate(lines.column_headings(evaluation)):
        table.add_column(escape(heading), justify="right" if index else "left", no_wrap=True)
    for row in lines.table_rows(evaluation):
        if row.main and table.row_count:
            table.add_section()
        cells = [
            f"[{SIGNIFICANCE_STYLES[cell.sign]}]{escape(cell.text)}[/]" if cell.sign else escape(cell.text)
            for cell in row.cells
        ]
        table.add_row(escape(row.label), *cells)
    return table
