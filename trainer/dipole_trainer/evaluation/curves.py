"""The curves of a run: what every update says, and what the pictures' prompts and noises say every few.

Rewards have scales of their own, so that each is drawn as its change, in standard deviations: of the candidates of one
prompt while training, of the base's images where prompts and noises are always the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dipole_trainer.ranking.forwarding.decoder_check import MIN_TAU

matplotlib.use("Agg")  # a picture for a file: no window, whatever the machine has

RUNNING_MEAN = 10  # updates
MAX_POINTS = 400  # of a line: a run may have 100,000 updates
MIN_DEVIATION = 1e-6  # of scores that are all the same: their change is drawn as it is
Point = Mapping[str, Any]  # pictures.read_samples
Update = Mapping[str, Any]  # job_events.StepFinished.data


@dataclass(frozen=True)
class Run:
    """What is drawn of a run. `updates` and `points` are in the order of their steps; `watched` names held-out
    rewards, which are dashed.
    """

    updates: Sequence[Update]
    points: Sequence[Point]
    watched: Collection[str]

    def reward_names(self) -> list[str]:
        """Of rewards that have any score, and not of their parts; trained ones first."""
        asked = {name for each in self.updates for name in each["rewards"]}
        asked |= {name for each in self.points for name in each["scores"] if "." not in name}
        return sorted(asked, key=lambda name: (name in self.watched, name))

    def compares_decoders(self) -> bool:
        """Whether any update says how far a tiny decoder's order agrees with the VAE's."""
        return any(each.get("decoder_tau") is not None for each in self.updates)

    def point_kind(self) -> str:
        """What the points are of."""
        held_out = bool(self.points) and self.points[0].get("of", "held_out") == "held_out"
        return "held-out prompts" if held_out else "training prompts"


Draw = Callable[[Axes, Run], None]


def draw_curves(run: Run, target: Path) -> None:
    """Every panel as one PNG."""
    panels: list[Draw] = [
        draw_training_rewards, draw_fixed_rewards, draw_diversity, draw_spread, draw_losses, draw_rate, draw_seconds,
    ]  # fmt: skip
    if run.compares_decoders():
        panels.append(draw_decoder)
    columns = len(panels) // 2 + 1  # of two rows, with a place for the notes
    figure = Figure(figsize=(5 * columns, 7.6), layout="constrained")
    axes = figure.subplots(2, columns).flatten()
    for axis, draw in zip(axes, panels, strict=False):
        draw(axis, run)
        finish_panel(axis)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    _write_notes(axes[len(panels)], run.points)
    figure.savefig(target, dpi=90)


def finish_panel(axis: Axes, *, legend: bool = True) -> None:
    """What every panel has: its horizontal axis named, and a legend of its lines, or that there are none."""
    axis.set_xlabel("update")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.spines[["top", "right"]].set_visible(False)
    if not axis.lines:
        axis.text(0.5, 0.5, "no values", ha="center", va="center", transform=axis.transAxes, color="grey")
    elif legend:
        axis.legend(frameon=False)


def draw_reward(axis: Axes, run: Run, name: str) -> None:
    """One reward in its own units: the candidates it was asked about, and the same prompts and noises at each point,
    with the base's mean as a line of its own.
    """
    axis.set_title(f"{name}, in its own units", fontsize=10)
    axis.set_ylabel("score")
    values = running_mean([each["rewards"].get(name) for each in run.updates])
    if np.isfinite(values).any():
        label = f"candidates, mean of {RUNNING_MEAN} updates"
        _plot(axis, [each["step"] for each in run.updates], values, label=label, color="C0", alpha=0.75)
    known = [each for each in run.points if "mean" in each["scores"].get(name, {})]
    if known:
        figures = [each["scores"][name] for each in known]
        axis.axhline(figures[0]["mean"], color="C5", linestyle=":", label=f"base, {run.point_kind()}")
        axis.errorbar(
            [each["step"] for each in known], [each["mean"] for each in figures],
            [[0 if each["low"] is None else each["mean"] - each["low"] for each in figures],
             [0 if each["high"] is None else each["high"] - each["mean"] for each in figures]],
            label=f"{run.point_kind()}, ± 95 %", color="C1", marker="o", markersize=4, capsize=2,
        )  # fmt: skip


def draw_training_rewards(axis: Axes, run: Run) -> None:
    axis.set_title(f"rewards of the candidates, running mean of {RUNNING_MEAN} updates", fontsize=10)
    axis.set_ylabel("change, in deviations within a prompt")
    for name in sorted({name for each in run.updates for name in each["rewards"]}):
        values = running_mean([each["rewards"].get(name) for each in run.updates])
        spread = [each["spread"][name] for each in run.updates if each["spread"].get(name) is not None]
        scale, first = _deviation(float(np.mean(spread)) if spread else 0.0), _first_finite(values)
        changes = [(value - first) / scale for value in values]
        label, style = _label(name, run.watched), _style(name, run.watched)
        _plot(axis, [each["step"] for each in run.updates], changes, label=label, **style)


def draw_fixed_rewards(axis: Axes, run: Run) -> None:
    axis.set_title(f"rewards of the same {run.point_kind()} and noises, ± 95 % over prompts", fontsize=10)
    axis.set_ylabel("change, in deviations")
    points = run.points
    names = [name for name in (points[0]["scores"] if points else {}) if "." not in name]
    if names:
        axis.axhline(0, color="C5", linestyle=":", label="base")
    for name in sorted(names):
        scale = _deviation(_spread_of_base(points[0], name))
        known = [each for each in points[1:] if "difference" in each["scores"].get(name, {})]
        changes = [each["scores"][name]["difference"] for each in known]
        steps = [points[0]["step"], *(each["step"] for each in known)]
        middles = np.array([0.0, *(each["mean"] for each in changes)]) / scale
        halves = np.array([0.0, *(((each["high"] or 0) - (each["low"] or 0)) / 2 for each in changes)]) / scale
        axis.errorbar(
            steps, middles, halves, label=_label(name, run.watched), marker="o", markersize=3, capsize=2,
            **_style(name, run.watched),
        )  # fmt: skip


def draw_diversity(axis: Axes, run: Run) -> None:
    axis.set_title("diversity of a prompt's images, of the base's", fontsize=10)
    axis.set_ylabel("share of the base's")
    for name in run.points[0]["diversities"] if run.points else ():
        base = run.points[0]["diversities"][name].get("mean")
        known = [each for each in run.points if base and "mean" in each["diversities"][name]]
        if known:
            shares = [each["diversities"][name]["mean"] / base for each in known]
            axis.plot([each["step"] for each in known], shares, label=name, marker="o", markersize=3)
    if axis.lines:
        axis.axhline(1, color="C5", linestyle=":", label="base")


def draw_spread(axis: Axes, run: Run) -> None:
    axis.set_title(f"spread within a prompt, running mean of {RUNNING_MEAN} updates", fontsize=10)
    axis.set_ylabel("standard deviation of scores")
    for name in sorted({name for each in run.updates for name in each["spread"]}):
        values = running_mean([each["spread"].get(name) for each in run.updates])
        label, style = _label(name, run.watched), _style(name, run.watched)
        _plot(axis, [each["step"] for each in run.updates], values, label=label, **style)


def draw_losses(axis: Axes, run: Run) -> None:
    axis.set_title("training loss and its parts", fontsize=10)
    axis.set_ylabel("loss")
    for name in ("loss", "drift_pref", "drift_ref"):
        known = [each for each in run.updates if each.get(name) is not None]
        if known:
            _plot(axis, [each["step"] for each in known], [each[name] for each in known], label=name.replace("_", " "))


def draw_decoder(axis: Axes, run: Run) -> None:
    axis.set_title("tiny decoder against the VAE", fontsize=10)
    axis.set_ylabel("agreement, 1 is the same")
    known = [each for each in run.updates if each.get("decoder_tau") is not None]
    for name, what in {"decoder_tau": "Kendall's τ", "decoder_overlap": "share of the chosen that both have"}.items():
        if known:
            values = [each[name] for each in known]
            _plot(axis, [each["step"] for each in known], values, label=what, marker="o", markersize=3)
    axis.axhline(MIN_TAU, color="C5", linestyle=":", label=f"a mean τ below {MIN_TAU:g} is told")


def draw_rate(axis: Axes, run: Run) -> None:
    axis.set_title("images that were trained on, a second", fontsize=10)
    axis.set_ylabel("images/s, mean so far")
    known = [each for each in run.updates if each.get("images_per_s") is not None]
    if known:
        _plot(axis, [each["step"] for each in known], [each["images_per_s"] for each in known], label="images/s")
    axis.set_ylim(bottom=0)


def draw_seconds(axis: Axes, run: Run) -> None:
    axis.set_title("where an update's time goes", fontsize=10)
    axis.set_ylabel("seconds")
    for name, what in {"generate": "generating", "wait": "waiting for rewards", "update": "updating"}.items():
        if run.updates:
            seconds = [each["seconds"].get(name, float("nan")) for each in run.updates]
            _plot(axis, [each["step"] for each in run.updates], seconds, label=what)


def _plot(axis: Axes, steps: Sequence[int], values: Sequence[float], **style: Any) -> None:
    """A line of at most about MAX_POINTS of its points, and the newest."""
    every = max(1, -(-len(steps) // MAX_POINTS))
    kept = sorted({*range(0, len(steps), every), *range(len(steps) - 1, len(steps))})
    axis.plot([steps[at] for at in kept], [values[at] for at in kept], **style)


def _write_notes(axis: Axes, points: Sequence[Point]) -> None:
    """What the points are of: nobody should take training prompts for held-out ones."""
    count = len(points[0]["prompts"]) if points else 0
    lines = ["Points are of training prompts: the job holds none out,", "so no reward was asked about them."]
    if points and points[0].get("of", "held_out") == "held_out":
        lines = ["Points are of held-out prompts, which training", "never draws."]
    lines = [f"{len(points)} points of {count} prompts, on the same noises each.", *lines, "",
             "Dashed: rewards that are watched, and not trained on.", "Dotted: the base.", "",
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
