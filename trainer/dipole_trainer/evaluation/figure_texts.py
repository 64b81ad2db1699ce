"""Figures of evaluations as people read them: for tables and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Evaluation = Mapping[str, Any]  # comparison.build_report, or what of one a picture shows
Figure = Mapping[str, Any]


def score_names(evaluation: Evaluation) -> list[str]:
    """Rewards in the order asked for, each followed by its parts."""
    rewards = [reward["name"] for reward in evaluation["rewards"]]
    known = {name for model in evaluation["models"] for name in model["figures"]["scores"]} - {*rewards}
    parts = {reward: sorted(name for name in known if name.startswith(f"{reward}.")) for reward in rewards}
    return [name for reward in rewards for name in (reward, *parts[reward])]


def format_estimate(figure: Figure, *, sign: bool = False) -> str:
    if "mean" not in figure:
        return "–"
    mean, half = (
        figure["mean"],
        "" if figure["low"] is None else f" ± {_format_number((figure['high'] - figure['low']) / 2)}",
    )
    return f"{'+' if sign and mean >= 0 else ''}{_format_number(mean)}{half}"


def _format_number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


def pluralize_count(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
