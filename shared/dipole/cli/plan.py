"""`dipole plan`: what a job will take on a device, before any weight is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dipole.cli.jobs import read_job_file
from dipole.cli.optional_imports import import_optional
from dipole.settings import PlatformSettings, load_settings

console = Console(highlight=False, soft_wrap=True)
GIB = 2**30


def plan_job(
    job: Annotated[Path, typer.Argument(help="A job's JSON, as for `dipole jobs create --config`.")],
    device: Annotated[
        list[str] | None,
        typer.Option(help="A card by name, such as rtx-4090, a100 or h100; `here` measures this machine. Repeat it."),
    ] = None,
    chunk: Annotated[int | None, typer.Option(min=1, help="Plan for this chunk_size and not the job's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plans as JSON.")] = False,
) -> None:
    """Say whether a job fits a GPU, how long it will take, and how often its rewards are asked.

    dipole plan examples/sd-turbo.json --device rtx-4090 --device h100
    """
    remarks = import_optional("transformers.utils.logging", "trainer")
    remarks.set_verbosity_error()
    planning = import_optional("dipole_trainer.planning.job_plan", "trainer")
    devices = import_optional("dipole_trainer.planning.devices", "trainer")
    models_dir = load_settings(PlatformSettings).models_dir
    spec = planning.parse_job(read_job_file(job))
    chosen = [devices.find_device(name) for name in device or devices.DEFAULT_DEVICES]
    with console.status("Running one update of it on tensors without memory …"):
        plans = planning.plan_job(spec, models_dir=models_dir, devices=chosen, chunk_size=chunk)
    if as_json:
        print(json.dumps([plan.to_json() for plan in plans], indent=1))
        return
    _print_phases(plans[0])
    _print_devices(plans)
    for line in planning.describe_limits(spec, plans[0]):
        console.print(escape(line))


def _print_phases(plan: Any) -> None:
    table = Table(
        title=f"{escape(plan.model)}: one update of {plan.images_per_update} images, {plan.precision}, "
        f"chunks of {plan.chunk_size}", title_justify="left",
    )  # fmt: skip
    for heading, justify in (("phase", "left"), ("TFLOP", "right"), ("share", "right"), ("peak GiB", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for name, cost in plan.phases.items():
        share = cost["teraflop"] / plan.teraflop_per_update
        table.add_row(name, f"{cost['teraflop']:.1f}", f"{share:.0%}", f"{cost['peak_bytes'] / GIB:.2f}")
    table.add_section()
    table.add_row("all", f"{plan.teraflop_per_update:.1f}", "", "")
    console.print(table)
    memory = plan.memory
    console.print(
        f"Memory: weights {memory.weights / GIB:.2f} + optimizer {memory.optimizer / GIB:.2f} + groups "
        f"{memory.groups / GIB:.2f} + prompts {memory.prompts / GIB:.2f} + peak {memory.peak_phase / GIB:.2f} "
        f"= {memory.total / GIB:.2f} GiB. Disk: {plan.disk_bytes / GIB:.2f} GiB."
    )


def _print_devices(plans: list[Any]) -> None:
    table = Table()
    headings = ("device", "usable GiB", "fits", "largest chunk", "s an update", "hours", "requests a minute")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "device" else "right")
    for plan in plans:
        table.add_row(
            escape(plan.device), f"{plan.memory.usable / GIB:.1f}", "[green]yes[/]" if plan.fits else "[red]no[/]",
            str(plan.largest_chunk or "none"), _range(plan.seconds_per_update), _range(plan.hours),
            _range(plan.requests_per_minute),
        )  # fmt: skip
    console.print(table)


def _range(values: tuple[float, float]) -> str:
    low, high = (f"{value:.3g}" for value in values)
    return f"{low} to {high}"
