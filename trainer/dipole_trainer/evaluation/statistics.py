"""Figures of evaluations: means with 95 % intervals over prompts, paired differences, win rates, diversity, hacking.

All intervals are Student's over prompts, one value a prompt: images of one prompt are no independent draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from dipole_trainer.evaluation.results import ScoredPrompt
from dipole_trainer.spec import MIN_PROMPTS_FOR_SIGNIFICANCE

DIVERSITY_FIELDS = {"distance": "diversity", "Vendi": "vendi"}  # what people call them: ScoredPrompt's field
MIN_DIVERSITY_DROP = 0.05
MIN_HELD_OUT_FALL = 0.2  # of the base's spread within a prompt: what statistics calls a small effect


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts with its 95 % interval (None for one prompt); `prompts` counts those that had any score."""

    mean: float
    low: float | None
    high: float | None
    prompts: int

    def to_json(self) -> dict[str, float | int | None]:
        return {"mean": self.mean, "low": self.low, "high": self.high, "prompts": self.prompts}


def estimate_mean(values: Sequence[float]) -> Estimate | None:
    """Mean of one value a prompt; the interval is Student's, over prompts."""
    finite = np.array([value for value in values if math.isfinite(value)])
    if not finite.size:
        return None
    mean, count = float(finite.mean()), int(finite.size)
    if count == 1:
        return Estimate(mean, None, None, 1)
    half = float(stats.t.ppf(0.975, count - 1) * finite.std(ddof=1) / math.sqrt(count))
    return Estimate(mean, mean - half, mean + half, count)


def mean_score_per_prompt(scored: Sequence[ScoredPrompt], name: str) -> list[float]:
    """One value a prompt: the mean over its images that have a score, NaN where none has."""
    return [_mean_or_nan([value for value in item.scores.get(name, ()) if value is not None]) for item in scored]


def pair_scores(
    scored: Sequence[ScoredPrompt], base: Sequence[ScoredPrompt], name: str
) -> list[list[tuple[float, float]]]:
    """For each prompt, the score and the base's on the same noise, of the noises on which both have one."""
    return [
        [
            (a, b)
            for a, b in zip(item.scores.get(name, ()), before.scores.get(name, ()), strict=False)
            if a is not None and b is not None
        ]
        for item, before in zip(scored, base, strict=True)
    ]


def _mean_or_nan(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def typical_spread(scored: Sequence[ScoredPrompt], name: str) -> float | None:
    """The mean over prompts of the standard deviation of a prompt's images' scores; of single images that over prompts.
    None where they are all alike.
    """
    known = [[value for value in item.scores.get(name, ()) if value is not None] for item in scored]
    groups = [values for values in known if len(values) > 1] or [[value for values in known for value in values]]
    spreads = [float(np.std(values, ddof=1)) for values in groups if len(values) > 1]
    return float(np.mean(spreads)) or None if spreads else None


def summarize_scores(
    scored: Sequence[ScoredPrompt],
    base: Sequence[ScoredPrompt] | None,
    *,
    spread_of: Sequence[ScoredPrompt] | None = None,
) -> dict[str, Any]:
    """Means with intervals per score, category and diversity, paired differences to the base's, and win rates.

    Differences are told in spreads too, of `spread_of` or, without it, of `base`.
    """
    names = sorted({name for item in scored for name in item.scores})
    tags = sorted({item.tag for item in scored if item.tag})
    rows = {tag: [i for i, item in enumerate(scored) if item.tag == tag] for tag in tags}
    figures: dict[str, Any] = {
        "scores": {name: _summarize_score(scored, base, name, spread_of or base) for name in names},
        "by_tag": {
            tag: {
                name: _summarize_score([scored[i] for i in at], base and [base[i] for i in at], name) for name in names
            }
            for tag, at in rows.items()
        },
        "diversities": {
            called: _summarize_diversity(scored, base, field) for called, field in DIVERSITY_FIELDS.items()
        },
    }
    now, before = (estimate_mean(_diversity_values(each, "diversity")) if each else None for each in (scored, base))
    figures["diversity"] = now.mean if now else None
    figures["diversity_ratio"] = now.mean / before.mean if now and before and before.mean else None
    return figures


def _summarize_score(
    scored: Sequence[ScoredPrompt],
    base: Sequence[ScoredPrompt] | None,
    name: str,
    spread_of: Sequence[ScoredPrompt] | None = None,
) -> dict[str, Any]:
    """`scored` of `images` have this score. The win rate is of noises on which it beats the base's, a tie is half."""
    mean = estimate_mean(mean_score_per_prompt(scored, name))
    each = max((len(values) for item in scored for values in item.scores.values()), default=0)
    count = sum(value is not None for item in scored for value in item.scores.get(name, ()))
    figure: dict[str, Any] = {**(mean.to_json() if mean else {}), "scored": count, "images": each * len(scored)}
    if base:
        pairs = pair_scores(scored, base, name)
        difference = estimate_mean([_mean_or_nan([a - b for a, b in each]) for each in pairs])
        rate = estimate_mean([_mean_or_nan([(a > b) + (a == b) / 2 for a, b in each]) for each in pairs])
        if difference and rate:
            spread = typical_spread(spread_of, name) if spread_of else None
            in_spreads = {"spreads": difference.mean / spread} if spread else {}
            figure["difference"] = {**difference.to_json(), **in_spreads}
            figure["win_rate"] = _clip_to_unit(rate).to_json()
    return figure


def _summarize_diversity(
    scored: Sequence[ScoredPrompt], base: Sequence[ScoredPrompt] | None, field: str
) -> dict[str, Any]:
    values = _diversity_values(scored, field)
    mean = estimate_mean(values)
    change = (
        estimate_mean([a - b for a, b in zip(values, _diversity_values(base, field), strict=True)]) if base else None
    )
    return {**(mean.to_json() if mean else {}), **({"difference": change.to_json()} if change else {})}


def _clip_to_unit(rate: Estimate) -> Estimate:
    """Student's interval may leave [0, 1]; a rate cannot."""
    low, high = (None if end is None else min(max(end, 0.0), 1.0) for end in (rate.low, rate.high))
    return Estimate(rate.mean, low, high, rate.prompts)


def _diversity_values(scored: Sequence[ScoredPrompt], field: str) -> list[float]:
    return [math.nan if (value := getattr(item, field)) is None else value for item in scored]


def significant_sign(figure: Mapping[str, Any], middle: float = 0.0) -> int:
    """The sign of a difference (or of a win rate, around a half) whose interval leaves out the middle, else 0."""
    if figure["low"] is None or figure["prompts"] < MIN_PROMPTS_FOR_SIGNIFICANCE:
        return 0
    return int(figure["low"] > middle) - int(figure["high"] < middle)


def reward_hacking(
    figures: Mapping[str, Any], trained: Mapping[str, float], held_out: Sequence[str], *, than: str = "the base"
) -> dict[str, Any] | None:
    """Reward hacking: a trained reward, by name with its weight, moved significantly (95 % interval excludes 0) where
    it was trained to go, for a weight below 0 down, while a held-out one, or diversity, surely fell. Else None.

    A held-out reward must have lost MIN_HELD_OUT_FALL of the spread that its difference is told in, as with prompts
    enough anything is sure; diversity MIN_DIVERSITY_DROP of what it was, as images of what was asked are more alike.
    """

    def moved_scores(named: Mapping[str, Any], sign: int) -> dict[str, float]:
        found = {name: figure.get("difference") for name, figure in named.items()}
        return {name: each["mean"] for name, each in found.items() if each and significant_sign(each) == sign}

    def has_size(name: str) -> bool:
        spreads = (figures["scores"].get(name, {}).get("difference") or {}).get("spreads")
        return spreads is None or abs(spreads) >= MIN_HELD_OUT_FALL

    def named_scores(names: Iterable[str]) -> dict[str, Any]:
        return {name: figures["scores"].get(name, {}) for name in names}

    diversities = {
        f"diversity ({name})": each
        for name, each in figures.get("diversities", {}).items()
        if (change := (each.get("difference") or {}).get("mean", 0.0))
        <= -MIN_DIVERSITY_DROP * (each.get("mean", 0.0) - change)
    }
    risen, fallen, less = (
        {
            **moved_scores(named_scores(name for name, weight in trained.items() if weight > 0), 1),
            **moved_scores(named_scores(name for name, weight in trained.items() if weight < 0), -1),
        },
        moved_scores(named_scores(filter(has_size, held_out)), -1),
        moved_scores(diversities, -1),
    )
    if not risen or not (fallen or less):
        return None
    up, down, narrower = (
        ", ".join(f"{name} {value:+.3f}" for name, value in each.items()) for each in (risen, fallen, less)
    )
    lost = " and ".join([*([f"the held-out {down}"] if down else []), *([narrower] if narrower else [])])
    return {"risen": risen, "fallen": {**fallen, **less}, "what": f"against {than} {up}, while {lost}"}
