"""The names of the files in a job's folder, and in the store beside it."""

from __future__ import annotations

import re
from pathlib import Path

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
CANDIDATES = "candidates"  # recorded.py: large, and of no use to the job itself
MARK = "complete"  # written last into a copied checkpoint: without it the copy was cut short


def upload_path(file_id: str) -> str:
    """Where an uploaded file is."""
    return f"files/{file_id}.jsonl"


def checkpoint_steps(workdir: Path) -> list[int]:
    """Steps that have a checkpoint in a working folder, ascending."""
    return sorted(int(match[1]) for path in workdir.iterdir() if (match := _CHECKPOINT.fullmatch(path.name)))


NAME = re.compile(r"^checkpoint-(\d+)$")
LORA, FULL = "unet_lora/adapter_model.safetensors", "unet/diffusion_pytorch_model.safetensors"


def newest(folder: Path) -> Path | None:
    """The checkpoint with the highest step, if there is one."""
    found = steps(folder)
    return folder / f"checkpoint-{found[-1]}" if found else None


def steps(folder: Path) -> list[int]:
    """Steps that have a whole checkpoint, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(match[1]) for path in folder.iterdir() if (match := NAME.match(path.name)))
