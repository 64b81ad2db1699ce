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

from dipole.whole_files import replacing
from dipole_trainer.storage import job_layout


@dataclass(frozen=True)
class ScoredPrompt:
    """One prompt's images under evaluation. `scores` holds rewards by name and their sub-scores as `reward.part`."""

    prompt: str
    tag: str
    scores: Mapping[str, Sequence[float | None]]
    diversity: float | None  # mean distance in φ between the prompt's images; None for a single image
    vendi: float | None = None  # how many different images these are in φ, 1 to K; None for a single image


def write_results(path: Path, step: int, scored: Sequence[ScoredPrompt], figures: Mapping[str, Any]) -> Path:
    """The figures and every score behind them, whole or not at all; the file's path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {"step": step, **figures, "prompts": [vars(item) for item in scored]}
    with replacing(path) as partial:  # its existence says that this step was evaluated
        partial.write_text(json.dumps(told, indent=1, allow_nan=False))
    return path


def read_results(path: Path) -> list[ScoredPrompt]:
    return [ScoredPrompt(**item) for item in json.loads(path.read_text())["prompts"]]


def read_figures(path: Path) -> dict[str, Any]:
    """What `write_results` was given beside the scores."""
    return {name: value for name, value in json.loads(path.read_text()).items() if name not in ("step", "prompts")}


def remove_results_after(workdir: Path, step: int) -> None:
    """Remove evaluations and samples of later steps: a run that resumes before them will make its own."""
    for folder in (job_layout.EVALUATION_FOLDER, job_layout.SAMPLES_FOLDER):
        for path in (workdir / folder).glob("*"):
            if (later := job_layout.step_of_file(path.name)) is not None and later > step:
                path.unlink()


def write_sample_sheet(workdir: Path, step: int, images: Sequence[NDArray[np.uint8]], prompts: Sequence[str]) -> Path:
    """The images as one, a row a prompt and a column a noise, and beside it which prompt each row is of; its path."""
    path = workdir / job_layout.samples_file(step)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in images], axis=0)
    cell = {"width": images[0].shape[2], "height": images[0].shape[1], "prompts": list(prompts[: len(images)])}
    # whole or not at all: trackers read an earlier step's meanwhile
    with replacing(workdir / job_layout.sample_prompts_file()) as partial:
        partial.write_text(json.dumps(cell))
    with replacing(path) as partial:
        Image.fromarray(sheet).save(partial, format="PNG")
    return path


def read_sample_sheet(workdir: Path, step: int) -> list[NDArray[np.uint8]]:
    """What `write_sample_sheet` was given, (n, H, W, 3) a prompt."""
    cell = json.loads((workdir / job_layout.sample_prompts_file()).read_text())
    with Image.open(workdir / job_layout.samples_file(step)) as file:
        sheet = np.asarray(file.convert("RGB"))
    rows, columns = len(cell["prompts"]), sheet.shape[1] // cell["width"]
    cells = sheet.reshape(rows, cell["height"], columns, cell["width"], 3)
    return list(cells.transpose(0, 2, 1, 3, 4))
