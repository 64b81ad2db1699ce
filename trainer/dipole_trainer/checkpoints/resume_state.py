"""Checkpoints: everything a run needs to go on where it was, written whole or not at all.

    checkpoint-N/
      unet_lora/adapter_model.safetensors, adapter_config.json     PEFT's own layout; with `tune: full` instead
      unet/diffusion_pytorch_model.safetensors                     every weight of the U-Net
      optimizer.safetensors                                        AdamW's moments, `index.name`
      training_state.json                                          step, counters, what it was trained for

Prompts, noises and the learning rate are functions of (seed, step), and groups in flight are drawn again from them: so
no random state, scheduler, data position or pending group needs saving, and on the CPU the run goes on to the same bits
while `max_staleness` is 0: windows drawn ahead are drawn again by weights that have moved. Nothing here is pickled.

A checkpoint being written is called `.checkpoint-N.partial`, and one being removed `.checkpoint-N.gone`:
nobody lists names with a dot, and `sweep` removes what a kill -9 left of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dipole.errors import InvalidInput
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.storage.job_layout import FULL, LORA, steps


def save(
    folder: Path, step: int, generator: OneStepGenerator, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> Path:
    """Write `folder/checkpoint-{step}` by renaming a finished temporary folder; returns its path."""
    target, temporary = folder / f"checkpoint-{step}", folder / f".checkpoint-{step}.partial"
    shutil.rmtree(temporary, ignore_errors=True)
    weights = temporary / (LORA if generator.lora else FULL)
    weights.parent.mkdir(parents=True)
    save_file(generator.state(), weights)
    if generator.lora:
        generator.lora.save_pretrained(str(weights.parent))
    save_file(_optimizer_tensors(optimizer), temporary / "optimizer.safetensors")
    (temporary / "training_state.json").write_text(json.dumps({"step": step, **state}, indent=1))
    for file in temporary.rglob("*"):
        if file.is_file():
            _sync(file)
    replaced = _set_aside(target) if target.exists() else None
    os.replace(temporary, target)
    _sync(folder)
    if replaced is not None:
        shutil.rmtree(replaced)
    return target


def load(
    path: Path,
    generator: OneStepGenerator,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    base: str | None = None,
) -> dict[str, Any]:
    """Put a checkpoint's weights (and optimiser) in place; returns its training state.

    Raises InvalidInput when it is of another model, adapter shape or, where `base` is given, of other base weights.
    """
    state: dict[str, Any] = json.loads((path / "training_state.json").read_text())
    if base is not None and state.get("base", base) != base:
        raise InvalidInput(
            f"{path.name} was trained on other weights of {state.get('model')!r} than those that are here now: "
            "give the model and revision that it was trained on",
            field="model",
        )
    weights = path / (LORA if generator.lora else FULL)
    if not weights.is_file():
        kind = "LoRA" if generator.lora else "full"
        raise InvalidInput(
            f"{path.name} holds no {kind} weights ({weights.name}): it is of another `tune`", field="tune"
        )
    generator.load_state(load_file(weights))
    if optimizer is not None:
        _restore(optimizer, load_file(path / "optimizer.safetensors"))
    return state


def prune(folder: Path, keep: int, best: int | None = None) -> None:
    """Remove all but the newest `keep` checkpoints and that of step `best`."""
    for step in steps(folder)[:-keep]:
        if step != best:
            shutil.rmtree(_set_aside(folder / f"checkpoint-{step}"))


def sweep(folder: Path) -> None:
    """Remove what whoever was killed left of a checkpoint that it wrote or removed."""
    for path in [*folder.glob(".checkpoint-*.partial"), *folder.glob(".checkpoint-*.gone")]:
        shutil.rmtree(path)


def fingerprint(generator: OneStepGenerator) -> str:
    """What tells base U-Nets apart: a hash of names, shapes and first numbers. To be asked before any training."""
    digest = hashlib.sha256()
    for name, value in sorted(generator.unet.state_dict().items()):
        if "lora_" not in name:
            plain = name.replace(".base_layer.", ".")
            head = value.detach().flatten()[:64].float().cpu().numpy().tobytes()
            digest.update(f"{plain}{tuple(value.shape)}".encode() + head)
    return digest.hexdigest()


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value).detach().cpu().contiguous().clone()
        for index, values in state.items()
        for name, value in values.items()
    }


def _restore(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _set_aside(path: Path) -> Path:
    """Out of the checkpoints at once, for it takes a while to remove; returns where it is now."""
    gone = path.with_name(f".{path.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    os.replace(path, gone)
    return gone


def _sync(path: Path) -> None:
    """Force a file or folder to disk: a checkpoint that has its name has its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
