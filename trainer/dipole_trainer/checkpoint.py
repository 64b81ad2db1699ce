"""Checkpoints: everything a run needs to go on exactly where it was, written whole or not at all.

    checkpoint-N/
      unet_lora/adapter_model.safetensors, adapter_config.json     PEFT's own layout
      optimizer.safetensors                                        AdamW's moments, `index.name`
      training_state.json                                          step, counters, what it was trained for

Prompts and noises are functions of (seed, step), so no random state needs saving. Nothing here is pickled.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from dipole.errors import InvalidInput
from dipole_trainer.generators.one_step import OneStepGenerator

NAME = re.compile(r"^checkpoint-(\d+)$")


def save(
    folder: Path, step: int, generator: OneStepGenerator, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> Path:
    """Write `folder/checkpoint-{step}` by renaming a finished temporary folder; returns its path."""
    target, temporary = folder / f"checkpoint-{step}", folder / f".checkpoint-{step}.partial"
    shutil.rmtree(temporary, ignore_errors=True)
    lora = temporary / "unet_lora"
    lora.mkdir(parents=True)
    save_file(adapter_state(generator), lora / "adapter_model.safetensors")
    generator.lora.save_pretrained(str(lora))
    save_file(_optimizer_tensors(optimizer), temporary / "optimizer.safetensors")
    (temporary / "training_state.json").write_text(json.dumps({"step": step, **state}, indent=1))
    for file in temporary.rglob("*"):
        if file.is_file():
            _sync(file)
    if target.exists():  # the same step again after a resume: the same content
        shutil.rmtree(target)
    os.replace(temporary, target)
    _sync(folder)
    return target


def newest(folder: Path) -> Path | None:
    """The checkpoint with the highest step, if there is one."""
    found = steps(folder)
    return folder / f"checkpoint-{found[-1]}" if found else None


def steps(folder: Path) -> list[int]:
    """Steps that have a whole checkpoint, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(match[1]) for path in folder.iterdir() if (match := NAME.match(path.name)))


def load(path: Path, generator: OneStepGenerator, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Put a checkpoint's adapter (and optimiser) in place; returns its training state.

    Raises InvalidInput when the checkpoint is of another model or adapter shape.
    """
    tensors = load_file(path / "unet_lora/adapter_model.safetensors")
    ours = adapter_state(generator)
    wrong = [name for name in ours.keys() | tensors.keys() if _shape(ours, name) != _shape(tensors, name)]
    if wrong:
        raise InvalidInput(f"{path.name} is of another model or LoRA: {min(wrong)} does not fit", field="model")
    set_peft_model_state_dict(generator.unet, tensors)
    if optimizer is not None:
        _restore(optimizer, load_file(path / "optimizer.safetensors"))
    state: dict[str, Any] = json.loads((path / "training_state.json").read_text())
    return state


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    for step in steps(folder)[:-keep]:
        shutil.rmtree(folder / f"checkpoint-{step}")


def adapter_state(generator: OneStepGenerator) -> dict[str, Tensor]:
    """The adapter's weights under PEFT's names, on the CPU."""
    state = get_peft_model_state_dict(generator.unet)
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}


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


def _shape(tensors: dict[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None


def _sync(path: Path) -> None:
    """Force a file or folder to disk: a checkpoint that has its name has its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
