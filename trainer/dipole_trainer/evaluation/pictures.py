"""A run's two pictures: the base beside the trained model on the same prompts and noises, and the curves.

Both are drawn from what lies in the job's folder, `samples/`, `evaluation/` and `metrics.jsonl`, so that a run which
another machine began has them whole.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dipole_trainer.evaluation import curves, results
from dipole_trainer.evaluation.contact_sheet import draw_contact_sheet
from dipole_trainer.spec import TrainSpec
from dipole_trainer.storage import job_layout
from dipole_trainer.storage.metrics_log import MetricsLog


def draw_pictures(workdir: Path, spec: TrainSpec, folder: Path, *, last: int | None = None) -> None:
    """Write samples.png and curves.png into `folder`; nothing where the job has its pictures turned off.

    samples.png shows the step `last` where there are pictures of it, else the last that there are pictures of.
    """
    steps, run = sampled_steps(workdir), read_run(workdir, spec)
    if not steps:
        return
    if len(steps) > 1:
        shown = (steps[0], last if last in steps else steps[-1])
        report = build_sample_report(workdir, spec, *shown)
        images = [results.read_sample_sheet(workdir, step) for step in shown]
        draw_contact_sheet(report, images).save(folder / job_layout.EXPORTED_SAMPLES_FILE)
    curves.draw_curves(run, folder / job_layout.CURVES_FILE)


def evaluation_spec(spec: TrainSpec) -> TrainSpec:
    """The job as evaluations see it: where pairs are trained on, no reward is, whatever its weight; all are watched."""
    if spec.pairs_file is None:
        return spec
    return spec.model_copy(update={"rewards": tuple(each.model_copy(update={"weight": 0.0}) for each in spec.rewards)})


def read_run(workdir: Path, spec: TrainSpec) -> curves.Run:
    """What every update said, and the points: of pictures, or of evaluations where those are as many or more."""
    updates = list(MetricsLog(workdir).read_steps())
    evaluated = evaluated_steps(workdir)
    if len(evaluated) >= len(sampled := sampled_steps(workdir)):
        points = [read_point(workdir / job_layout.evaluation_file(step)) for step in evaluated]
    else:
        points = [read_samples(workdir, step) for step in sampled]
    return curves.Run(updates, points, {reward.name for reward in spec.rewards if reward.is_held_out})


def evaluated_steps(workdir: Path) -> list[int]:
    """Steps that every held-out prompt was evaluated at, ascending."""
    found = (job_layout.step_of_file(path.name) for path in (workdir / job_layout.EVALUATION_FOLDER).glob("*.json"))
    return sorted(step for step in found if step is not None)


def sampled_steps(workdir: Path) -> list[int]:
    """Steps that there are pictures of, ascending."""
    found = (job_layout.step_of_file(path.name) for path in (workdir / job_layout.SAMPLES_FOLDER).glob("*.json"))
    return sorted(step for step in found if step is not None)


def read_samples(workdir: Path, step: int) -> dict[str, Any]:
    """A point of the curves: `step`, `of`, figures, and `prompts` with every score."""
    return read_point(workdir / job_layout.sample_figures_file(step))


def read_point(path: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(path.read_text())
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
    # of every held-out prompt, where both steps were evaluated: figures of other prompts do not compare
    whole = [workdir / job_layout.evaluation_file(step) for step in (first, last)]
    is_whole = all(path.is_file() for path in whole)
    figures = [results.read_figures(path) for path in whole] if is_whole else shown
    of = "all prompts" if is_whole else "these prompts"
    return {
        "models": [{"label": label, "figures": each, "of": of} for label, each in zip(labels, figures, strict=True)],
        "prompts": prompts,
        "images_per_prompt": spec.evaluation.images_per_prompt,
        "rewards": [{"name": reward.name} for reward in spec.rewards],
        "prompt_count": len(spec.evaluation.prompts) if is_held_out else len(prompts),
        "prompt_kind": "held-out prompt" if is_held_out else "training prompt",
        "remark": "" if is_held_out else ", none held out",
    }
