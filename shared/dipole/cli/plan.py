"""`dipole plan`: what a job will take on a device, before any weight is there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dipole.cli.jobs import read_job_file
from dipole.cli.optional_imports import import_optional
from dipole.cli.progress.waiting import ShownWait
from dipole.cli.terminal import KeyOption, err
from dipole.client.trainer_api import TrainerApi
from dipole.settings import PlatformSettings, load_settings

console = Console(highlight=False, soft_wrap=True)
GIB = 2**30
PLAN_TIMEOUT_S = 300.0  # the API gives up first (DIPOLE_SAMPLER_TIMEOUT_S)


def plan_job(
    job: Annotated[Path, typer.Argument(help="A job's JSON, as for `dipole jobs create --config`.")],
    device: Annotated[
        list[str] | None,
        typer.Option(help="A card by name, such as rtx-4090, a100 or h100; `here` measures this machine. Repeat it."),
    ] = None,
    chunk: Annotated[int | None, typer.Option(min=1, help="Plan for this chunk_size and not the job's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plans as JSON.")] = False,
    url: Annotated[
        str | None,
        typer.Option("--api", help="Ask the trainer API at this URL, whose sampler plans: no torch is needed here."),
    ] = None,
    key: KeyOption = None,
) -> None:
    """Say whether a job fits a GPU, how long it will take, and how often its rewards are asked.

    dipole plan examples/sd-turbo.json --device rtx-4090 --device h100

    dipole plan job.json --api https://trainer.lan:8400      (where there is no torch)
    """
    body = read_job_file(job)
    with ShownWait(err, "Running one update of it on tensors without memory"):
        plans, remarks = _plan_there(url, key, body, device, chunk) if url else _plan_here(body, device, chunk)
    if as_json:
        print(json.dumps(plans, indent=1))
        return
    # devices may compute in different precisions
    for plan in {plan["precision"]: plan for plan in reversed(plans)}.values():
        _print_phases(plan)
    _print_devices(plans)
    for line in remarks:
        console.print(escape(line))


def _plan_there(
    url: str, key: str | None, body: dict[str, Any], device: list[str] | None, chunk: int | None
) -> tuple[list[dict[str, Any]], list[str]]:
    asked = [("device", name) for name in device or []] + ([("chunk_size", str(chunk))] if chunk else [])
    query = f"?{urlencode(asked)}" if asked else ""
    with TrainerApi(url, key) as api:
        answer = api.post(f"/v1/fine_tuning/plan{query}", body, timeout=PLAN_TIMEOUT_S)
    return answer["data"], answer["remarks"]


def _plan_here(
    body: dict[str, Any], device: list[str] | None, chunk: int | None
) -> tuple[list[dict[str, Any]], list[str]]:
    """(plans, what their numbers do not say)"""
    remarks = import_optional("transformers.utils.logging", "trainer")
    remarks.set_verbosity_error()
    planning = import_optional("dipole_trainer.planning.job_plan", "trainer")
    devices = import_optional("dipole_trainer.planning.devices", "trainer")
    models_dir = load_settings(PlatformSettings).models_dir
    spec = planning.parse_job(body)
    chosen = [devices.find_device(name) for name in device or devices.DEFAULT_DEVICES]
    plans = planning.plan_job(spec, models_dir=models_dir, devices=chosen, chunk_size=chunk)
    return [plan.to_json() for plan in plans], planning.describe_limits(spec, plans[0])


def _print_phases(plan: dict[str, Any]) -> None:
    table = Table(
        title=f"{escape(plan['model'])}: one update of {plan['images_per_update']} images, {plan['precision']}, "
        f"chunks of {plan['chunk_size']}", title_justify="left",
    )  # fmt: skip
    for heading, justify in (("phase", "left"), ("TFLOP", "right"), ("share", "right"), ("peak GiB", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    whole = sum(cost["teraflop"] for cost in plan["phases"].values())
    for name, cost in plan["phases"].items():
        share = cost["teraflop"] / whole
        table.add_row(name, f"{cost['teraflop']:.1f}", f"{share:.0%}", f"{cost['peak_bytes'] / GIB:.2f}")
    table.add_section()
    table.add_row("all", f"{whole:.1f}", "", "")
    console.print(table)
    memory = plan["memory"]
    console.print(
        f"Memory: weights {memory['weights'] / GIB:.2f} + optimizer {memory['optimizer'] / GIB:.2f} + groups "
        f"{memory['groups'] / GIB:.2f} + prompts {memory['prompts'] / GIB:.2f} + peak {memory['peak_phase'] / GIB:.2f} "
        f"= {memory['total'] / GIB:.2f} GiB, with memory lean. A sample's graph, where it is kept (memory auto): "
        f"{plan['graphs']['bytes_each'] / GIB:.2f} GiB more. Disk: {plan['disk_bytes'] / GIB:.2f} GiB."
    )


def _print_devices(plans: list[dict[str, Any]]) -> None:
    table = Table()
    headings = (
        "device",
        "precision",
        "usable GiB",
        "fits",
        "largest chunk",
        "graphs kept",
        "GiB, lean to auto",
        "TFLOP, lean to auto",
        "s an update",
        "hours",
        "requests a minute",
    )
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("device", "precision") else "right")
    for plan in plans:
        graphs, total, teraflop = plan["graphs"], plan["memory"]["total"], plan["teraflop_per_update"]
        table.add_row(
            escape(plan["device"]), plan["precision"], f"{plan['memory']['usable'] / GIB:.1f}",
            "[green]yes[/]" if plan["fits"] else "[red]no[/]", str(plan["largest_chunk"] or "none"),
            f"{graphs['kept']} of {plan['images_per_update']}",
            _range((total / GIB, graphs["total"] / GIB)),
            _range((teraflop + graphs["saved_teraflop"], teraflop)),
            _range(plan["seconds_per_update"]), _range(plan["hours"]),
            _range(plan["requests_per_minute"]),
        )  # fmt: skip
    console.print(table)


def _range(values: Sequence[float]) -> str:
    low, high = (f"{value:.3g}" for value in values)
    return f"{low} to {high}"
