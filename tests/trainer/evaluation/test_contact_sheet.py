"""The contact sheet: every image in its place, every text within its bounds, whatever is compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dipole_trainer.evaluation import contact_sheet
from dipole_trainer.evaluation.contact_sheet import (
    LEFT,
    MAX_PROMPTS,
    clip_text,
    draw_contact_sheet,
    load_font,
    wrap_text,
)

LONG = "a hyper-detailed portrait of an old fisherman by the café, golden light " * 8


def evaluation(labels: list[str], prompts: list[str], images: int, scores: list[float | None]) -> dict[str, Any]:
    figure = {"scores": {"r": {"mean": 0.5, "low": 0.4, "high": 0.6, "prompts": len(prompts)}}}
    each = {label: {"scores": {"r": scores}} for label in labels}
    return {
        "rewards": [{"name": "r"}], "images_per_prompt": images,
        "models": [{"label": label, "figures": figure} for label in labels],
        "prompts": [{"prompt": prompt, "tag": "a tag", "models": each} for prompt in prompts],
    }  # fmt: skip


def test_each_model_prompt_and_noise_has_its_place() -> None:
    """Rows are prompts, and a model's noises stand together in their order: each image is of one colour of its own."""
    models, prompts, noises = 3, 2, 4

    def colour(model: int, prompt: int, noise: int) -> tuple[int, int, int]:
        return 60 * model + 30, 80 * prompt + 40, 50 * noise + 20

    images = [
        [np.stack([np.full((16, 16, 3), colour(m, p, k), np.uint8) for k in range(noises)]) for p in range(prompts)]
        for m in range(models)
    ]
    said = evaluation(["a", "b", "c"], ["x", "y"], noises, [0.5, None, 1.0, 0.0])
    sheet = np.asarray(draw_contact_sheet(said, images))
    at = {
        (m, p, k): np.argwhere((sheet == colour(m, p, k)).all(-1)).mean(0)
        for m in range(models)
        for p in range(prompts)
        for k in range(noises)
    }
    for p in range(prompts):
        order = [at[m, p, k][1] for m in range(models) for k in range(noises)]
        assert order == sorted(order)
        assert len({at[m, p, k][0] for m in range(models) for k in range(noises)}) == 1, "one row"
    assert at[0, 0, 0][0] < at[0, 1, 0][0]
    assert at[0, 0, 0][1] > LEFT


def test_borders_say_right_or_wrong_and_the_sheet_says_so() -> None:
    """Where a reward judges images, each has its border, and the corner a legend; nothing of it where none does."""
    images = [[np.full((2, 16, 16, 3), 128, np.uint8)]]
    said = evaluation(["a"], ["x"], 2, [1.0, 0.0])
    assert not np.isin(np.asarray(draw_contact_sheet(said, images)), contact_sheet.RIGHT).all(-1).any()
    said["prompts"][0]["models"]["a"] = {"scores": {"r": [1.0, 0.0], "r.strict": [1.0, 0.0]}}
    sheet = np.asarray(draw_contact_sheet(said, images))
    for colour, place in ((contact_sheet.RIGHT, 0), (contact_sheet.WRONG, 1)):
        columns = np.flatnonzero((sheet == colour).all(-1).any(0))
        assert (columns < LEFT).any(), "the legend"
        middles = columns[columns > LEFT] - LEFT
        cell = contact_sheet.CELL_MAX + contact_sheet.GAP
        assert set(middles // cell) == {place}, "one image's border"


@pytest.mark.parametrize(("models", "images"), [(1, 1), (2, 4), (3, 64), (4, 16)])
def test_the_sheet_keeps_its_size(models: int, images: int) -> None:
    """However many prompts and noises: the first of them, and no wider than a screen."""
    prompts = [LONG] * 40
    drawn = [[np.zeros((images, 24, 16, 3), np.uint8)] * MAX_PROMPTS] * models  # not square
    said = evaluation([f"m{index}" for index in range(models)], prompts, images, [None] * images)
    sheet = draw_contact_sheet(said, drawn)
    assert sheet.width <= contact_sheet.SHEET_WIDTH
    assert sheet.height <= 2050


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=300), st.integers(40, 300))
def test_no_line_is_wider_than_its_room(text: str, width: int) -> None:
    """And no character is lost on the way."""
    lines = wrap_text(text, 15, width)
    assert all(load_font(15).getlength(line) <= width or len(line) == 1 for line in lines)
    assert "".join("".join(lines).split()) == "".join(contact_sheet.make_legible(text).split())


def test_text_that_was_cut_ends_in_dots() -> None:
    assert clip_text("short", 15, 200) == "short"
    assert clip_text("short", 15, 200, more=True) == "short..."
    cut = clip_text(LONG, 15, 200)
    assert cut.endswith("...")
    assert load_font(15).getlength(cut) <= 200


def test_without_a_font_of_the_machine_text_stays_legible(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's own font knows basic Latin: accents go, and a text of which nothing is left says so."""
    monkeypatch.setattr(contact_sheet, "FONTS", ())
    load_font.cache_clear()
    try:
        assert contact_sheet.make_legible("café\n0.5 ± 0.1") == "cafe 0.5 +- 0.1"
        assert contact_sheet.make_legible("窗台上的猫") == "(no font for this text)"
    finally:
        load_font.cache_clear()
