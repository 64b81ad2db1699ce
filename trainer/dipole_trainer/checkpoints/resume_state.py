"""Checkpoints: everything a run needs to go on where it was, written whole or not at all.

    an adapter, in PEFT's own layout; with `tune: full` every weight, in diffusers'
    optimizer.safetensors    AdamW's moments, `index.name`
    training_state.json      step, counters, what it was trained for
    ema/                     with `optimizer.ema`: the average of the weights (moving_average.py)

storage/job_layout.py says where each lies.

Prompts, noises and the learning rate are functions of (seed, step), and groups in flight are drawn again from them: so
no random state, scheduler, data position or pending group needs saving, and on the CPU the run goes on to the same bits
while `max_staleness` is 0: windows drawn ahead are drawn again by weights that have moved. Where a reward takes its
time (202), as people do, those windows are kept instead (training/windows.py). Nothing here is pickled.

A checkpoint being written is called `.checkpoint-N.TOKEN.partial`, and one being removed `.checkpoint-N.TOKEN.gone`:
nobody lists names with a dot, and `remove_partial_checkpoints` removes what a kill -9 left of them. The token is
random, because a worker that stood still may wake up in the middle of a write, while another has taken its job over
and writes the same.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dipole.errors import InvalidInput
from dipole_trainer.generators.initial_weights import fingerprint_weights
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.storage import job_layout


def save_checkpoint(
    folder: Path,
    step: int,
    generator: OneStepGenerator,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    write_more: Callable[[Path], None] = lambda folder: None,
) -> Path:
    """Write `folder/checkpoint-{step}` by renaming a finished temporary folder; returns its path. `write_more` may put
    other files into it.
    """
    name = job_layout.checkpoint_name(step)
    target, temporary = folder / name, _hidden_path(folder / name, "partial")
    write_weights(temporary, generator)
    save_file(_optimizer_tensors(optimizer), temporary / job_layout.OPTIMIZER_FILE)
    (temporary / job_layout.TRAINING_STATE_FILE).write_text(json.dumps({"step": step, **state}, indent=1))
    write_more(temporary)
    for file in temporary.rglob("*"):
        if file.is_file():
            _fsync_path(file)
    replaced = _rename_for_removal(target) if target.exists() else None
    os.replace(temporary, target)
    _fsync_path(folder)
    if replaced is not None:
        shutil.rmtree(replaced)
    return target


def load_checkpoint(
    path: Path,
    generator: OneStepGenerator,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    base: str | None = None,
) -> dict[str, Any]:
    """Put a checkpoint's weights (and optimiser) in place; returns its training state.

    Raises InvalidInput when it is of another model, adapter shape or, where `base` is given, of other base weights.
    """
    state: dict[str, Any] = json.loads((path / job_layout.TRAINING_STATE_FILE).read_text())
    if base is not None and state.get("base", base) != base:
        raise InvalidInput(
            f"{path.name} was trained on other weights of {state.get('model')!r} than those that are here now: "
            "give the model and revision that it was trained on",
            field="model",
        )
    read_weights(path, generator)
    if optimizer is not None:
        _restore_optimizer(optimizer, load_file(path / job_layout.OPTIMIZER_FILE))
    return state


def write_weights(folder: Path, generator: OneStepGenerator) -> None:
    """What the generator trains, as it is now, laid out as in a checkpoint."""
    weights = folder / _weights_file(generator)
    weights.parent.mkdir(parents=True)
    save_file(generator.trained_state(), weights)
    if generator.lora:
        generator.lora.save_pretrained(str(weights.parent))


def read_weights(folder: Path, generator: OneStepGenerator) -> None:
    """Put in place what `write_weights` wrote. Raises InvalidInput when it is of another `tune` or shape."""
    weights = folder / _weights_file(generator)
    if not weights.is_file():
        kind = "LoRA" if generator.lora else "full"
        raise InvalidInput(
            f"{folder.name} holds no {kind} weights ({weights.name}): it is of another `tune`", field="tune"
        )
    generator.load_state(load_file(weights))


def prune_checkpoints(folder: Path, keep: int, kept: Collection[int] = ()) -> None:
    """Remove all but the newest `keep` checkpoints and those of the steps `kept`; older ones are not gone on from."""
    for step in job_layout.checkpoint_steps(folder)[:-1]:
        (folder / job_layout.checkpoint_name(step) / job_layout.GROUPS_IN_FLIGHT_FILE).unlink(missing_ok=True)
    for step in job_layout.checkpoint_steps(folder)[:-keep]:
        if step not in kept:
            shutil.rmtree(_rename_for_removal(folder / job_layout.checkpoint_name(step)))


def remove_checkpoints_after(folder: Path, step: int) -> None:
    """Remove checkpoints of later steps, so that this one is the newest."""
    for later in job_layout.checkpoint_steps(folder):
        if later > step:
            shutil.rmtree(_rename_for_removal(folder / job_layout.checkpoint_name(later)))


def remove_partial_checkpoints(folder: Path) -> None:
    """Remove what is left of a checkpoint that somebody wrote or removed who was killed, or stands still."""
    for path in [*folder.glob(".checkpoint-*.partial"), *folder.glob(".checkpoint-*.gone")]:
        shutil.rmtree(path, ignore_errors=True)


def fingerprint_base(generator: OneStepGenerator) -> str:
    """What tells base networks apart. To be asked before any training."""
    return generator.initial_fingerprint or fingerprint_weights(generator.base_state())


def weight_files(generator: OneStepGenerator) -> tuple[str, str]:
    """What of a checkpoint `load_checkpoint` reads without an optimiser, by path relative to it."""
    return job_layout.TRAINING_STATE_FILE, _weights_file(generator)


def _weights_file(generator: OneStepGenerator) -> str:
    """Where a checkpoint has what this generator trains."""
    path_of = job_layout.adapter_weights_file if generator.lora else job_layout.full_weights_file
    return path_of(generator.component)


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value).detach().cpu().contiguous().clone()
        for index, values in state.items()
        for name, value in values.items()
    }


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _rename_for_removal(path: Path) -> Path:
    """Rename first: deleting takes time, and a half-deleted folder must not look like a checkpoint; returns where it is
    now.
    """
    gone = _hidden_path(path, "gone")
    os.replace(path, gone)
    return gone


def _hidden_path(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{suffix}")


def _fsync_path(path: Path) -> None:
    """Force a file or folder to disk: a checkpoint that has its name has its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
