"""The gallery of a report: a prompt's images on the same noises, the base's beside those of later steps.

Images are small WebP files inside the page, and bounded: what does not fit is left out, and said.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dipole_trainer.evaluation import pictures, results
from dipole_trainer.evaluation.contact_sheet import VERDICT
from dipole_trainer.seeds import derive_seeds
from dipole_trainer.spec import TrainSpec

MAX_BYTES = 3 * 2**20  # of all its images, as they stand in the page
MAX_STEPS, MAX_NOISES, MAX_SCORES = 6, 4, 2
MAX_SIDE, LOSSLESS_SIDE = 192, 96  # pixels


@dataclass(frozen=True)
class Cell:
    """An image. `verdict`: whether it is right; None where no reward says that."""

    source: str
    label: str
    scores: Sequence[str]
    verdict: bool | None


@dataclass(frozen=True)
class Row:
    noise: int
    seed: int
    cells: Sequence[Cell]


@dataclass(frozen=True)
class PromptImages:
    prompt: str
    tag: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Gallery:
    """`steps` has the columns' names; `shown_scores` what the numbers below an image are of, and `verdict` its
    border.
    """

    steps: Sequence[str]
    prompts: Sequence[PromptImages]
    prompt_count: int  # of those that there are images of
    shown_scores: Sequence[str]
    verdict: str | None
    held_out: bool


def build_gallery(workdir: Path, spec: TrainSpec, best_step: int | None) -> Gallery | None:
    """None where the job has no images."""
    sampled = pictures.sampled_steps(workdir)
    if not sampled:
        return None
    steps = choose_steps(sampled, best_step)
    points = [pictures.read_samples(workdir, step) for step in steps]
    sheets = [results.read_sample_sheet(workdir, step) for step in steps]
    labels = [label_step(step, sampled[-1], best_step) for step in steps]
    shown, verdict = choose_scores(spec, points[0]["scores"])
    prompts: list[PromptImages] = []
    left, count = MAX_BYTES, min(len(points[0]["prompts"]), len(sheets[0]))
    for index in range(count):
        scored = [point["prompts"][index] for point in points]
        rows = []
        seeds = derive_seeds(spec.evaluation.seed, "evaluation", index, count=len(sheets[0][index]))
        for noise, seed in list(enumerate(seeds))[:MAX_NOISES]:
            cells = [
                Cell(
                    encode_image(sheet[index][noise]),
                    f"{label}, noise {noise + 1}",
                    [_format_score(each["scores"].get(name, ()), noise) for name in shown],
                    _read_verdict(each["scores"], verdict, noise),
                )
                for label, sheet, each in zip(labels, sheets, scored, strict=True)
            ]
            rows.append(Row(noise + 1, seed, cells))
        left -= sum(len(cell.source) for row in rows for cell in row.cells)
        if left < 0 and prompts:
            break
        prompts.append(PromptImages(scored[0]["prompt"], scored[0]["tag"], rows))
    return Gallery(labels, prompts, count, shown, verdict, points[0]["of"] == "held_out")


def choose_steps(sampled: Sequence[int], best_step: int | None) -> list[int]:
    """The first, which is the base, the last, the best, and others evenly between, at most MAX_STEPS."""
    chosen = {sampled[0], sampled[-1], *({best_step} & set(sampled))}
    between = [step for step in sampled if step not in chosen]
    room = min(MAX_STEPS - len(chosen), len(between))
    chosen |= {between[(2 * k + 1) * len(between) // (2 * room)] for k in range(room)}
    return sorted(step for step in chosen if step is not None)


def label_step(step: int, last: int, best_step: int | None) -> str:
    if step == 0:
        return "base"
    notes = [name for name, is_it in (("best", step == best_step), ("last", step == last)) if is_it]
    return f"step {step}" + (f" ({' and '.join(notes)})" if notes else "")


def choose_scores(spec: TrainSpec, scores: Mapping[str, Any]) -> tuple[list[str], str | None]:
    """The rewards whose scores stand below the images, trained ones first, and the part that judges right or wrong."""
    rewards = sorted(spec.rewards, key=lambda reward: reward.is_held_out)
    known = [reward.name for reward in rewards if "mean" in scores.get(reward.name, {})]
    verdict = next((f"{name}{VERDICT}" for name in known if f"{name}{VERDICT}" in scores), None)
    return known[:MAX_SCORES], verdict


def encode_image(image: NDArray[np.uint8]) -> str:
    """A data: URI of an image (H, W, 3), no larger than MAX_SIDE."""
    picture = Image.fromarray(image)
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, format="WEBP", lossless=max(picture.size) <= LOSSLESS_SIDE, quality=80)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def _format_score(scores: Sequence[float | None], noise: int) -> str:
    value = scores[noise] if noise < len(scores) else None
    return "–" if value is None else f"{value:.2f}"


def _read_verdict(scores: Mapping[str, Sequence[float | None]], name: str | None, noise: int) -> bool | None:
    values = scores.get(name, ()) if name else ()
    value = values[noise] if noise < len(values) else None
    return None if value is None else value >= 0.5
