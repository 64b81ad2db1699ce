"""An evaluation's files in a job's folder: scores and figures as JSON, and a sheet of images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class Scored:
    """One prompt's images under evaluation. `scores` holds rewards by name and their sub-scores as `reward.part`."""

    prompt: str
    tag: str
    scores: Mapping[str, Sequence[float | None]]
    diversity: float | None  # mean distance in φ between the prompt's images; None for a single image
    vendi: float | None = None  # how many different images these are in φ, 1 to K; None for a single image


def write(folder: Path, step: int, scored: Sequence[Scored], figures: Mapping[str, Any]) -> Path:
    """`evaluation/step-N.json`: the figures and every score behind them."""
    folder.mkdir(parents=True, exist_ok=True)
    path, temporary = folder / f"step-{step}.json", folder / f".step-{step}.partial"
    temporary.write_text(
        json.dumps({"step": step, **figures, "prompts": [vars(item) for item in scored]}, indent=1, allow_nan=False)
    )
    temporary.replace(path)  # whole or not at all: its existence says that this step was evaluated
    return path


def read(path: Path) -> list[Scored]:
    return [Scored(**item) for item in json.loads(path.read_text())["prompts"]]


def read_figures(path: Path) -> dict[str, Any]:
    """What `write` was given beside the scores."""
    return {name: value for name, value in json.loads(path.read_text()).items() if name not in ("step", "prompts")}


def forget_after(workdir: Path, step: int) -> None:
    """Remove evaluations and samples of later steps: a run that resumes before them will make its own."""
    for path in [*workdir.glob("evaluation/step-*.json"), *workdir.glob("samples/step-*.png")]:
        if int(path.stem.removeprefix("step-")) > step:
            path.unlink()


def write_sheet(folder: Path, step: int, images: Sequence[NDArray[np.uint8]], prompts: Sequence[str]) -> Path:
    """`samples/step-N.png`, one row a prompt and one column a noise, and `samples/prompts.json` naming the rows."""
    folder.mkdir(parents=True, exist_ok=True)
    sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in images], axis=0)
    path = folder / f"step-{step}.png"
    Image.fromarray(sheet).save(path)
    cell = {"width": images[0].shape[2], "height": images[0].shape[1], "prompts": list(prompts[: len(images)])}
    (folder / "prompts.json").write_text(json.dumps(cell))
    return path
