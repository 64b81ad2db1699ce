"""The curves of a run: what every update says, and what the pictures' prompts and noises say every few.

Rewards have scales of their own, so that each is drawn as its change, in standard deviations: of the candidates of one
prompt while training, of the base's images where prompts and noises are always the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

matplotlib.use("Agg")  # a picture for a file: no window, whatever the machine has

RUNNING_MEAN = 10  # updates
MIN_DEVIATION = 1e-6  # of scores that are all the same: their change is drawn as it is
Point = Mapping[str, Any]  # pictures.read_samples
Update = Mapping[str, Any]  # job_events.StepFinished.data


def draw_curves(updates: Sequence[Update], points: Sequence[Point], target: Path, *, watched: Collection[str]) -> None:
    """Six panels as a PNG. `updates` and `points` are in the order of their steps; `watched` names held-out rewards."""
    figure = Figure(figsize=(15, 7.2), layout="constrained")
    (training, fixed, diversity), (loss, seconds, notes) = figure.subplots(2, 3)
    _draw_training_rewards(training, updates, watched)
    _draw_fixed_rewards(fixed, points, watched)
    _draw_diversity(diversity, points)
    _draw_losses(loss, updates)
    _draw_seconds(seconds, updates)
    _write_notes(notes, points)
    for axis in (training, fixed, diversity, loss, seconds):
        axis.set_xlabel("update")
        axis.spines[["top", "right"]].set_visible(False)
        if axis.lines:
            axis.legend(frameon=False)
        else:
            axis.text(0.5, 0.5, "no values", ha="center", va="center", transform=axis.transAxes, color="grey")
    figure.savefig(target, dpi=100)


def _draw_training_rewards(axis: Axes, updates: Sequence[Update], watched: Collection[str]) -> None:
    axis.set_title(f"rewards of the candidates, running mean of {RUNNING_MEAN} updates", fontsize=10)
    axis.set_ylabel("change, in deviations within a prompt")
    for name in sorted({name for each in updates for name in each["rewards"]}):
        values = running_mean([each["rewards"].get(name) for each in updates])
        spread = [each["spread"][name] for each in updates if each["spread"].get(name) is not None]
        scale, first = _deviation(float(np.mean(spread)) if spread else 0.0), _first_finite(values)
        changes = [(value - first) / scale for value in values]
        axis.plot([each["step"] for each in updates], changes, label=_label(name, watched), **_style(name, watched))


def _draw_fixed_rewards(axis: Axes, points: Sequence[Point], watched: Collection[str]) -> None:
    axis.set_title("rewards of the same prompts and noises, ± 95 % over prompts", fontsize=10)
    axis.set_ylabel("change from the base, in its deviations")
    names = [name for name in (points[0]["scores"] if points else {}) if "." not in name]
    for name in sorted(names):
        scale = _deviation(_spread_of_base(points[0], name))
        known = [each for each in points[1:] if "difference" in each["scores"].get(name, {})]
        changes = [each["scores"][name]["difference"] for each in known]
        steps = [points[0]["step"], *(each["step"] for each in known)]
        middles = np.array([0.0, *(each["mean"] for each in changes)]) / scale
        halves = np.array([0.0, *(((each["high"] or 0) - (each["low"] or 0)) / 2 for each in changes)]) / scale
        axis.errorbar(
            steps, middles, halves, label=_label(name, watched), marker="o", markersize=3, capsize=2,
            **_style(name, watched),
        )  # fmt: skip


def _draw_diversity(axis: Axes, points: Sequence[Point]) -> None:
    axis.set_title("diversity of a prompt's images, of the base's", fontsize=10)
    axis.set_ylabel("share of the base's")
    for name in points[0]["diversities"] if points else ():
        base = points[0]["diversities"][name].get("mean")
        known = [each for each in points if base and "mean" in each["diversities"][name]]
        if known:
            shares = [each["diversities"][name]["mean"] / base for each in known]
            axis.plot([each["step"] for each in known], shares, label=name, marker="o", markersize=3)


def _draw_losses(axis: Axes, updates: Sequence[Update]) -> None:
    axis.set_title("training loss and its parts", fontsize=10)
    axis.set_ylabel("loss")
    for name in ("loss", "drift_pref", "drift_ref"):
        known = [each for each in updates if each.get(name) is not None]
        if known:
            axis.plot([each["step"] for each in known], [each[name] for each in known], label=name.replace("_", " "))


def _draw_seconds(axis: Axes, updates: Sequence[Update]) -> None:
    axis.set_title("where an update's time goes", fontsize=10)
    axis.set_ylabel("seconds")
    for name in ("generate", "wait", "update") if updates else ():
        axis.plot([each["step"] for each in updates], [each["seconds"][name] for each in updates], label=name)


def _write_notes(axis: Axes, points: Sequence[Point]) -> None:
    """What the points are of: nobody should take training prompts for held-out ones."""
    axis.set_axis_off()
    count = len(points[0]["prompts"]) if points else 0
    lines = ["Points are of training prompts: the job holds none out,", "so no reward was asked about them."]
    if points and points[0]["of"] == "held_out":
        lines = ["Points are of held-out prompts, which training", "never draws."]
    lines = [f"{len(points)} points of {count} prompts, on the same noises each.", *lines, "",
             "Dashed: rewards that are watched, and not trained on.", "",
             "A deviation is a standard deviation of a reward's scores:", "of one prompt's candidates while training,",
             "of the base's images on the same prompts and noises."]  # fmt: skip
    axis.text(0, 0.95, "\n".join(lines), va="top", fontsize=10, linespacing=1.5, transform=axis.transAxes)


def running_mean(values: Sequence[float | None], width: int = RUNNING_MEAN) -> list[float]:
    """Over the last `width` values that are there; NaN where there is none."""
    found = []
    for end in range(1, len(values) + 1):
        window = [value for value in values[max(0, end - width) : end] if value is not None]
        found.append(float(np.mean(window)) if window else float("nan"))
    return found


def _spread_of_base(point: Point, name: str) -> float:
    scores = [value for prompt in point["prompts"] for value in prompt["scores"].get(name, ()) if value is not None]
    return float(np.std(scores)) if scores else 0.0


def _deviation(value: float) -> float:
    return value if value > MIN_DEVIATION else 1.0


def _first_finite(values: Sequence[float]) -> float:
    return next((value for value in values if np.isfinite(value)), 0.0)


def _label(name: str, watched: Collection[str]) -> str:
    return f"{name} (watched)" if name in watched else name


def _style(name: str, watched: Collection[str]) -> dict[str, Any]:
    """Colour does not speak alone."""
    return {"linestyle": "--"} if name in watched else {}
