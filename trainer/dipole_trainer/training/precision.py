"""The precision that a run computes in: the job's own; else the one it began in; else its device's default.

A run keeps what it began in, on whichever device it goes on: its weights were trained on a base in that precision, and
evaluations compare with the base's. What was chosen is in the job's folder from the start, as `run.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dipole.protocol import job_events
from dipole.protocol.job_events import OnEvent
from dipole.whole_files import replacing
from dipole_trainer.compute import gpu
from dipole_trainer.distributed.group import ProcessGroup
from dipole_trainer.spec import Precision, TrainSpec
from dipole_trainer.storage import job_layout

HasBf16 = Callable[[str], bool]


def choose_precision(
    spec: TrainSpec, workdir: Path, processes: ProcessGroup, on_event: OnEvent, has_bf16: HasBf16 = gpu.supports_bf16
) -> TrainSpec:
    """The spec with its precision named, the same on every process; rank 0 says which, and why.

    `has_bf16` tells of a device whether it computes in bf16 itself.
    """
    device = processes.device.partition(":")[0]
    if spec.precision is not None:
        _report_choice(processes, on_event, spec.precision, device, "as the job says")
        return spec
    begun = _read_beginning(workdir) if processes.is_main else None
    told = processes.all_gather({"default": gpu.default_precision(processes.device, has_bf16), "begun": begun})
    # a GPU without bf16 among several decides for all
    default: Precision = "bf16" if all(each["default"] == "bf16" for each in told) else "fp32"
    if (kept := told[0]["begun"]) is None:
        _write_beginning(workdir, processes, default, device)
        _report_choice(
            processes, on_event, default, device, f"the job names none, and {_explain_default(default, device)}"
        )
        return spec.model_copy(update={"precision": default})
    precision: Precision = kept["precision"]
    if precision == default:
        _report_choice(processes, on_event, precision, device, "as the run began")
    elif processes.is_main:
        job_events.PrecisionKept(
            precision=precision, device=device, began_on=kept.get("device") or "another device", default=default
        ).report(on_event)
    return spec.model_copy(update={"precision": precision})


def precision_advice(spec: TrainSpec, device: str, has_bf16: HasBf16 = gpu.supports_bf16) -> str | None:
    """What to say of fp32 on a GPU; whoever asks for it for exactness is not overruled."""
    if not device.startswith("cuda") or spec.precision == "bf16":
        return None
    if not has_bf16(device):
        slow = "fp32 is slow on a GPU, and this one has no bf16: precision fp16 computes faster, with a smaller range"
        return None if spec.precision == "fp16" else slow
    if spec.precision == "fp32":
        return "precision fp32 is slow on a GPU: bf16 computes faster, and what is trained stays fp32"
    return None


def _explain_default(precision: Precision, device: str) -> str:
    if precision == "bf16":
        return "the GPU has bf16"
    return f"the {'GPU has no bf16' if device == 'cuda' else 'CPU computes fastest in it'}"


def _report_choice(processes: ProcessGroup, on_event: OnEvent, precision: Precision, device: str, why: str) -> None:
    if processes.is_main:
        job_events.PrecisionChosen(precision=precision, device=device, why=why).report(on_event)


def _read_beginning(workdir: Path) -> dict[str, Any] | None:
    """Precision and device that the run began with; a checkpoint of a run that noted none has its precision."""
    if (path := workdir / job_layout.RUN_FILE).is_file():
        begun: dict[str, Any] = json.loads(path.read_text())
        return begun
    if (checkpoint := job_layout.newest_checkpoint(workdir)) is not None:
        state = json.loads((checkpoint / job_layout.TRAINING_STATE_FILE).read_text())
        if state.get("precision"):
            return {"precision": state["precision"]}
    return None


def _write_beginning(workdir: Path, processes: ProcessGroup, precision: Precision, device: str) -> None:
    """Whole or not at all, before anything is drawn."""
    if processes.is_main:
        with replacing(workdir / job_layout.RUN_FILE) as partial:
            partial.write_text(json.dumps({"precision": precision, "device": device}))
