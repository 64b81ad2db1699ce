"""Figures of evaluations: means with 95 % intervals over prompts, paired differences, win rates, diversity, hacking.

All intervals are Student's over prompts, one value a prompt: images of one prompt are no independent draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from dipole_trainer.evaluation.results import Scored

DIVERSITIES = {"distance": "diversity", "Vendi": "vendi"}  # what people call them: Scored's field
SURE_PROMPTS = 6  # with fewer, not even all of them agreeing is significant at 5 %, whatever their spread seems to be
NARROWER = 0.05


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts with its 95 % interval (None for one prompt); `prompts` counts those that had any score."""

    mean: float
    low: float | None
    high: float | None
    prompts: int

    def json(self) -> dict[str, float | int | None]:
        return {"mean": self.mean, "low": self.low, "high": self.high, "prompts": self.prompts}


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean of one value a prompt; the interval is Student's, over prompts."""
    finite = np.array([value for value in values if math.isfinite(value)])
    if not finite.size:
        return None
    mean, count = float(finite.mean()), int(finite.size)
    if count == 1:
        return Estimate(mean, None, None, 1)
    half = float(stats.t.ppf(0.975, count - 1) * finite.std(ddof=1) / math.sqrt(count))
    return Estimate(mean, mean - half, mean + half, count)


def prompt_means(scored: Sequence[Scored], name: str) -> list[float]:
    """One value a prompt: the mean over its images that have a score, NaN where none has."""
    return [_mean([value for value in item.scores.get(name, ()) if value is not None]) for item in scored]


def paired(scored: Sequence[Scored], base: Sequence[Scored], name: str) -> list[list[tuple[float, float]]]:
    """For each prompt, the score and the base's on the same noise, of the noises on which both have one."""
    return [
        [
            (a, b)
            for a, b in zip(item.scores.get(name, ()), before.scores.get(name, ()), strict=False)
            if a is not None and b is not None
        ]
        for item, before in zip(scored, base, strict=True)
    ]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def summary(scored: Sequence[Scored], base: Sequence[Scored] | None) -> dict[str, Any]:
    """Means with intervals per score, category and diversity, paired differences to the base's, and win rates."""
    names = sorted({name for item in scored for name in item.scores})
    tags = sorted({item.tag for item in scored if item.tag})
    rows = {tag: [i for i, item in enumerate(scored) if item.tag == tag] for tag in tags}
    figures: dict[str, Any] = {
        "scores": {name: _score(scored, base, name) for name in names},
        "by_tag": {
            tag: {name: _score([scored[i] for i in at], base and [base[i] for i in at], name) for name in names}
            for tag, at in rows.items()
        },
        "diversities": {called: _diversity(scored, base, field) for called, field in DIVERSITIES.items()},
    }
    now, before = (estimate(_field(each, "diversity")) if each else None for each in (scored, base))
    figures["diversity"] = now.mean if now else None
    figures["diversity_ratio"] = now.mean / before.mean if now and before and before.mean else None
    return figures


def _score(scored: Sequence[Scored], base: Sequence[Scored] | None, name: str) -> dict[str, Any]:
    """`scored` of `images` have this score. The win rate is of noises on which it beats the base's, a tie is half."""
    mean = estimate(prompt_means(scored, name))
    each = max((len(values) for item in scored for values in item.scores.values()), default=0)
    count = sum(value is not None for item in scored for value in item.scores.get(name, ()))
    figure: dict[str, Any] = {**(mean.json() if mean else {}), "scored": count, "images": each * len(scored)}
    if base:
        pairs = paired(scored, base, name)
        difference = estimate([_mean([a - b for a, b in each]) for each in pairs])
        rate = estimate([_mean([(a > b) + (a == b) / 2 for a, b in each]) for each in pairs])
        if difference and rate:
            figure |= {"difference": difference.json(), "win_rate": _share(rate).json()}
    return figure


def _diversity(scored: Sequence[Scored], base: Sequence[Scored] | None, field: str) -> dict[str, Any]:
    values = _field(scored, field)
    mean = estimate(values)
    change = estimate([a - b for a, b in zip(values, _field(base, field), strict=True)]) if base else None
    return {**(mean.json() if mean else {}), **({"difference": change.json()} if change else {})}


def _share(rate: Estimate) -> Estimate:
    """Student's interval knows no bounds; a share has them."""
    low, high = (None if end is None else min(max(end, 0.0), 1.0) for end in (rate.low, rate.high))
    return Estimate(rate.mean, low, high, rate.prompts)


def _field(scored: Sequence[Scored], field: str) -> list[float]:
    return [math.nan if (value := getattr(item, field)) is None else value for item in scored]


def sure(figure: Mapping[str, Any], middle: float = 0.0) -> int:
    """The sign of a difference (or of a win rate, around a half) whose interval leaves out the middle, else 0."""
    if figure["low"] is None or figure["prompts"] < SURE_PROMPTS:
        return 0
    return int(figure["low"] > middle) - int(figure["high"] < middle)


def hacking(
    figures: Mapping[str, Any], trained: Sequence[str], held_out: Sequence[str], *, than: str = "the base"
) -> dict[str, Any] | None:
    """Reward hacking: a trained reward surely rose while a held-out one, or diversity, surely fell. Else None.

    Diversity must have lost NARROWER of what it was: images that come to show what was asked for are more alike.
    """

    def moved(named: Mapping[str, Any], sign: int) -> dict[str, float]:
        found = {name: figure.get("difference") for name, figure in named.items()}
        return {name: each["mean"] for name, each in found.items() if each and sure(each) == sign}

    def scores(names: Sequence[str]) -> dict[str, Any]:
        return {name: figures["scores"].get(name, {}) for name in names}

    diversities = {
        f"diversity ({name})": each
        for name, each in figures.get("diversities", {}).items()
        if (change := (each.get("difference") or {}).get("mean", 0.0)) <= -NARROWER * (each.get("mean", 0.0) - change)
    }
    risen, fallen, less = moved(scores(trained), 1), moved(scores(held_out), -1), moved(diversities, -1)
    if not risen or not (fallen or less):
        return None
    up, down, narrower = (
        ", ".join(f"{name} {value:+.3f}" for name, value in each.items()) for each in (risen, fallen, less)
    )
    lost = " and ".join([*([f"the held-out {down}"] if down else []), *([narrower] if narrower else [])])
    return {"risen": risen, "fallen": {**fallen, **less}, "what": f"against {than} {up}, while {lost}"}
