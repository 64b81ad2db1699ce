"""A run's two pictures: the base beside the trained model on the same prompts and noises, and the curves.

Both are drawn from what lies in the job's folder, `samples/`, `evaluation/` and `metrics.jsonl`, so that a run which
another machine began has them whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dipole_trainer.evaluation import curves, results
from dipole_trainer.evaluation.contact_sheet import draw_contact_sheet
from dipole_trainer.spec import TrainSpec
from dipole_trainer.storage import job_layout


def draw_pictures(workdir: Path, spec: TrainSpec, folder: Path, *, last: int | None = None) -> None:
    """Write samples.png and curves.png into `folder`; nothing where the job has its pictures turned off.

    samples.png shows the step `last` where there are pictures of it, else the last that there are pictures of.
    """
    steps = sampled_steps(workdir)
    if not steps:
        return
    if len(steps) > 1:
        shown = (steps[0], last if last in steps else steps[-1])
        report = build_sample_report(workdir, spec, *shown)
        images = [results.read_sample_sheet(workdir, step) for step in shown]
        draw_contact_sheet(report, images).save(folder / job_layout.EXPORTED_SAMPLES_FILE)
    updates = [json.loads(line) for line in (workdir / job_layout.METRICS_FILE).read_text().splitlines()]
    points = [read_samples(workdir, step) for step in steps]
    watched = {reward.name for reward in spec.rewards if reward.weight == 0}
    curves.draw_curves(updates, points, folder / job_layout.CURVES_FILE, watched=watched)


def sampled_steps(workdir: Path) -> list[int]:
    """Steps that there are pictures of, ascending."""
    found = (job_layout.step_of_file(path.name) for path in (workdir / job_layout.SAMPLES_FOLDER).glob("*.json"))
    return sorted(step for step in found if step is not None)


def read_samples(workdir: Path, step: int) -> dict[str, Any]:
    """A point of the curves: `step`, `of`, figures, and `prompts` with every score."""
    told: dict[str, Any] = json.loads((workdir / job_layout.sample_figures_file(step)).read_text())
    return told


def build_sample_report(workdir: Path, spec: TrainSpec, first: int, last: int) -> dict[str, Any]:
    """What a contact sheet of two of a run's steps shows, in the shape of comparison.build_report."""
    labels = ["base", f"{spec.method.type}, step {last}"]
    shown = [read_samples(workdir, step) for step in (first, last)]
    is_held_out = shown[0]["of"] == "held_out"
    prompts = [
        {
            "prompt": base["prompt"],
            "tag": base["tag"],
            "models": {label: {"scores": each["scores"]} for label, each in zip(labels, (base, tuned), strict=True)},
        }
        for base, tuned in zip(*(each["prompts"] for each in shown), strict=True)
    ]
    figures = [_figures_of_all(workdir, step, each) for step, each in zip((first, last), shown, strict=True)]
    return {
        "models": [{"label": label, "figures": each} for label, each in zip(labels, figures, strict=True)],
        "prompts": prompts,
        "images_per_prompt": spec.evaluation.images_per_prompt,
        "rewards": [{"name": reward.name} for reward in spec.rewards],
        "prompt_count": len(spec.evaluation.prompts) if is_held_out else len(prompts),
        "prompt_kind": "held-out prompt" if is_held_out else "training prompt",
        "remark": "" if is_held_out else ", none held out",
    }


def _figures_of_all(workdir: Path, step: int, shown: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of every held-out prompt where that step was evaluated, else of those that are shown."""
    path = workdir / job_layout.evaluation_file(step)
    return results.read_figures(path) if path.is_file() else shown
