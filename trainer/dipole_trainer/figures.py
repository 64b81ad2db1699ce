"""Figures of evaluations: means with 95 % intervals over prompts, paired differences, diversity, reward hacking."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from dipole_trainer.evaluate import Scored


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
    means = []
    for item in scored:
        values = [value for value in item.scores.get(name, ()) if value is not None]
        means.append(float(np.mean(values)) if values else math.nan)
    return means


def summary(scored: Sequence[Scored], base: Sequence[Scored] | None) -> dict[str, Any]:
    """Means with intervals per score and category, and the paired differences to the base's evaluation."""
    names = sorted({name for item in scored for name in item.scores})
    tags = sorted({item.tag for item in scored if item.tag})
    figures: dict[str, Any] = {"scores": {}, "by_tag": {tag: {} for tag in tags}}
    for name in names:
        means = prompt_means(scored, name)
        before = prompt_means(base, name) if base else None
        figures["scores"][name] = _figure(means, before)
        for tag in tags:
            rows = [i for i, item in enumerate(scored) if item.tag == tag]
            figures["by_tag"][tag][name] = _figure([means[i] for i in rows], before and [before[i] for i in rows])
    figures["diversity"] = diversity = _diversity(scored)
    at_first = _diversity(base) if base else None
    figures["diversity_ratio"] = diversity / at_first if diversity is not None and at_first else None
    return figures


def _diversity(scored: Sequence[Scored]) -> float | None:
    values = [item.diversity for item in scored if item.diversity is not None]
    return float(np.mean(values)) if values else None


def _figure(means: Sequence[float], before: Sequence[float] | None) -> dict[str, Any]:
    value = estimate(means)
    difference = estimate([a - b for a, b in zip(means, before, strict=True)]) if before else None
    return {**(value.json() if value else {}), **({"difference": difference.json()} if difference else {})}


def hacking(figures: Mapping[str, Any], trained: Sequence[str], held_out: Sequence[str]) -> dict[str, Any] | None:
    """Reward hacking: a trained reward surely rose while a held-out one surely fell. None when that is not so."""

    def differences(names: Sequence[str]) -> dict[str, Mapping[str, float]]:
        found = {name: figures["scores"].get(name, {}).get("difference") for name in names}
        return {name: value for name, value in found.items() if value and value["low"] is not None}

    risen = {name: value["mean"] for name, value in differences(trained).items() if value["low"] > 0}
    fallen = {name: value["mean"] for name, value in differences(held_out).items() if value["high"] < 0}
    if not risen or not fallen:
        return None
    up, down = (", ".join(f"{name} {value:+.3f}" for name, value in side.items()) for side in (risen, fallen))
    return {"risen": risen, "fallen": fallen, "what": f"since the base {up}, while the held-out {down}"}
