"""Figures of an evaluation, against independent computations and hand-made cases."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dipole_trainer.evaluate import Scored, estimate, hacking, prompt_means, read, spread, summary, write


def scored(values: list[list[float | None]], name: str = "r", tag: str = "t", diversity: float = 1.0) -> list[Scored]:
    return [Scored(f"prompt {i}", tag, {name: row}, diversity) for i, row in enumerate(values)]


def test_interval_is_over_prompts_not_images() -> None:
    """Copies of the same images do not make the interval narrower."""
    few = estimate(prompt_means(scored([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]), "r"))
    many = estimate(prompt_means(scored([[0.0, 1.0] * 50, [1.0] * 100, [0.0] * 100]), "r"))
    assert few == many
    assert few is not None
    assert few.high is not None
    half = 4.302653 * np.std([0.5, 1.0, 0.0], ddof=1) / math.sqrt(3)  # Student's t, two degrees of freedom
    assert (few.mean, few.high - few.mean) == pytest.approx((0.5, half))


def test_prompts_without_a_score_are_left_out_and_counted() -> None:
    found = estimate(prompt_means(scored([[None, None], [1.0, None], [0.0, 0.0]]), "r"))
    assert found is not None
    assert (found.mean, found.prompts) == (0.5, 2)


def test_one_prompt_has_no_interval() -> None:
    """And so no certainty: nothing is called hacking on one prompt. The file stays JSON."""
    figures = summary(scored([[1.0]]), scored([[0.0]]))
    assert figures["scores"]["r"]["difference"] == {"mean": 1.0, "low": None, "high": None, "prompts": 1}
    assert hacking(figures, ["r"], ["r"]) is None
    json.dumps(figures, allow_nan=False)


def test_difference_is_paired() -> None:
    """A constant gain over very different prompts has an interval of no width."""
    base = scored([[0.0], [0.5], [0.9]])
    figures = summary(scored([[0.1], [0.6], [1.0]]), base)
    difference = figures["scores"]["r"]["difference"]
    assert difference["mean"] == pytest.approx(0.1)
    assert difference["high"] - difference["low"] == pytest.approx(0)
    assert figures["by_tag"]["t"]["r"]["difference"]["prompts"] == 3


def test_hacking_needs_a_sure_rise_and_a_sure_fall() -> None:
    def figures(trained: tuple[float, float], held: tuple[float, float]) -> dict[str, object]:
        parts = {"good": trained, "held": held}
        return {
            "scores": {n: {"difference": {"mean": (a + b) / 2, "low": a, "high": b}} for n, (a, b) in parts.items()}
        }

    found = hacking(figures((0.1, 0.2), (-0.3, -0.1)), ["good"], ["held"])
    assert found is not None
    assert found["fallen"] == {"held": pytest.approx(-0.2)}
    assert hacking(figures((0.1, 0.2), (-0.3, 0.1)), ["good"], ["held"]) is None
    assert hacking(figures((-0.1, 0.2), (-0.3, -0.1)), ["good"], ["held"]) is None
    assert hacking(figures((0.1, 0.2), (-0.3, -0.1)), ["good"], ["absent"]) is None


def test_spread_is_the_mean_distance_between_samples() -> None:
    points = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    assert spread({"a": points[:, None]}) == pytest.approx((5 + 5 + 0) / 3)
    assert spread({"a": points[:1, None]}) is None


def test_files_say_everything_again(tmp_path: Path) -> None:
    items = scored([[0.5, None]])
    path = write(tmp_path, 3, items, summary(items, None))
    assert read(path) == items
    assert json.loads(path.read_text())["step"] == 3
