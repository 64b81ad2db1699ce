"""The contact sheet of models side by side: a row a prompt, a block of columns a model, the same noises in each block.

Legend: N prompts shown, M models, n noises shown of each, H, W image size.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dipole_trainer.evaluation.figure_texts import format_estimate, pluralize_count, score_names

MAX_PROMPTS = 12
SHEET_WIDTH = 1800  # pixels of the sheet, at most about
CELL_MIN, CELL_MAX, BLOCK_MIN = 72, 128, 200
LEFT, TOP, MARGIN = 300, 84, 20
GAP, BLOCK_GAP, CAPTION = 6, 22, 20
VERDICT = ".strict"  # how the part of a reward is called that says of an image whether it is right, 1 or 0
VERDICT_LINES = 46  # pixels of the legend of what borders mean
INK, GREY, RULE, PAPER, SHADE = (24, 24, 27), (95, 95, 104), (222, 222, 228), (255, 255, 255), (246, 246, 249)
FONTS = ("NotoSansCJK-Regular.ttc", "DejaVuSans.ttf")  # where the machine has one; Pillow's own is basic Latin

RIGHT, WRONG = (11, 138, 74), (196, 38, 29)  # the colours of borders; wrong ones are dashed too

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Images = Sequence[NDArray[np.uint8]]  # (K, H, W, 3) a prompt


def draw_contact_sheet(evaluation: Mapping[str, Any], images: Sequence[Images]) -> Image.Image:
    """The first prompts of a comparison.build_report; `images` holds each model's, (K, H, W, 3) a prompt.

    `evaluation` may say what its prompts are, as `prompt_kind`, `remark` on them, and of how many they are the first,
    as `prompt_count`.
    """
    models, prompts = evaluation["models"], evaluation["prompts"][:MAX_PROMPTS]
    shown, cell = _fit_cells(len(models), evaluation["images_per_prompt"])
    score, verdict = _shown_score(evaluation), find_verdict(evaluation)
    above = TOP + (VERDICT_LINES if verdict else 0)
    block, row = max(BLOCK_MIN, shown * (cell + GAP) - GAP), cell + CAPTION + 2 * GAP
    width = LEFT + len(models) * (block + BLOCK_GAP) + MARGIN
    sheet = Image.new("RGB", (width, above + len(prompts) * row + MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    _draw_corner(pen, evaluation, shown, score)
    if verdict:
        _draw_legend(pen, verdict)
    lefts = [LEFT + index * (block + BLOCK_GAP) for index in range(len(models))]
    for model, left, drawn in zip(models, lefts, images, strict=True):
        pen.rectangle((left - 8, 8, left + block + 7, sheet.height - 9), fill=SHADE)
        _draw_heading(pen, model, score, left, block)
        for index, prompt in enumerate(prompts):
            scores = prompt["models"][model["label"]]["scores"].get(score, [None] * shown) if score else None
            at = (left, above + index * row + GAP)
            verdicts = prompt["models"][model["label"]]["scores"].get(verdict, ()) if verdict else ()
            _draw_row(sheet, pen, at, cell, drawn[index][:shown], scores, verdicts)
    for index, prompt in enumerate(prompts):
        top = above + index * row
        pen.line((MARGIN, top, width - MARGIN, top), fill=RULE)
        _draw_prompt(pen, prompt, top + GAP, cell + CAPTION)
    return sheet


def _fit_cells(models: int, count: int) -> tuple[int, int]:
    """How many noises to show of each model, and the side of a cell, so that the sheet keeps its width."""
    room = (SHEET_WIDTH - LEFT - MARGIN) // models - BLOCK_GAP
    shown = max(1, min(count, (room + GAP) // (CELL_MIN + GAP)))
    return shown, min(CELL_MAX, max(CELL_MIN, (room + GAP) // shown - GAP))


def _shown_score(evaluation: Mapping[str, Any]) -> str | None:
    """The first reward that scored anything: its scores stand under the images."""
    for name in score_names(evaluation):
        if any("mean" in model["figures"]["scores"].get(name, {}) for model in evaluation["models"]):
            return name
    return None


def find_verdict(evaluation: Mapping[str, Any]) -> str | None:
    """The first score that says right or wrong of an image."""
    judged = {name for prompt in evaluation["prompts"] for each in prompt["models"].values() for name in each["scores"]}
    rewards = [reward["name"] for reward in evaluation["rewards"]]
    return next((f"{name}{VERDICT}" for name in rewards if f"{name}{VERDICT}" in judged), None)


def _draw_legend(pen: ImageDraw.ImageDraw, verdict: str) -> None:
    """What the borders mean."""
    for line, (is_right, said) in enumerate(((True, "right"), (False, "wrong"))):
        top = TOP - 6 + 22 * line
        draw_verdict(pen, (MARGIN, top, MARGIN + 16, top + 16), is_right)
        style = "solid green" if is_right else "dashed red"
        text = clip_text(f"{style}: {said}" + (f", by {verdict}" if is_right else ""), 14, LEFT - MARGIN - 40)
        pen.text((MARGIN + 26, top - 1), text, fill=GREY, font=load_font(14))


def draw_verdict(pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int], is_right: bool) -> None:
    """A border along the inside of (left, top, right, bottom)."""
    left, top, right, bottom = box
    if is_right:
        pen.rectangle(box, outline=RIGHT, width=3)
        return
    for start in range(0, max(right - left, bottom - top), 8):
        for y in (top, bottom - 1):
            pen.line((left + start, y, min(left + start + 4, right), y), fill=WRONG, width=2)
        for x in (left, right - 1):
            pen.line((x, top + start, x, min(top + start + 4, bottom)), fill=WRONG, width=2)


def _draw_corner(pen: ImageDraw.ImageDraw, evaluation: Mapping[str, Any], shown: int, score: str | None) -> None:
    count, given = evaluation["images_per_prompt"], len(evaluation["prompts"])
    prompts, rows_shown = evaluation.get("prompt_count", given), min(given, MAX_PROMPTS)
    kind, remark = evaluation.get("prompt_kind", "prompt"), evaluation.get("remark", "")
    rows = pluralize_count(prompts, kind) if prompts == rows_shown else f"first {rows_shown} of {prompts} {kind}s"
    rows += remark
    columns = pluralize_count(count, "noise") if shown == count else f"first {shown} of {count} noises"
    lines = [rows, f"{columns}, same for all"]
    if score is not None:
        lines.append(f"under each image: {score}")
    for index, line in enumerate(lines):
        pen.text((MARGIN, 18 + 19 * index), clip_text(line, 14, LEFT - MARGIN - 16), fill=GREY, font=load_font(14))


def _draw_heading(pen: ImageDraw.ImageDraw, model: Mapping[str, Any], score: str | None, left: int, width: int) -> None:
    size = 20 if load_font(20).getlength(make_legible(model["label"])) <= width else 14
    pen.text((left, 18), clip_text(model["label"], size, width), fill=INK, font=load_font(size))
    figure = model["figures"]["scores"].get(score, {})
    if "mean" in figure:
        said = f"{score} {format_estimate(figure)} on {model.get('of', 'all prompts')}"
        short = format_estimate(figure)
        text = said if load_font(14).getlength(said) <= width else short
        pen.text((left, 48), clip_text(text, 14, width), fill=GREY, font=load_font(14))


def _draw_row(
    sheet: Image.Image,
    pen: ImageDraw.ImageDraw,
    at: tuple[int, int],
    cell: int,
    images: NDArray[np.uint8],  # (n, H, W, 3)
    scores: Sequence[float | None] | None,  # None: nothing was scored
    verdicts: Sequence[float | None] = (),
) -> None:
    left, top = at
    for index, image in enumerate(images):
        x = left + index * (cell + GAP)
        sheet.paste(_make_thumbnail(image, cell), (x, top))
        if index < len(verdicts) and (verdict := verdicts[index]) is not None:
            draw_verdict(pen, (x, top, x + cell - 1, top + cell - 1), verdict >= 0.5)
        if scores is None:
            continue
        score = scores[index] if index < len(scores) else None
        text = "no score" if score is None else _format_score(score)
        pen.text(
            (x + cell / 2, top + cell + 3), text, fill=GREY if score is None else INK, font=load_font(13), anchor="ma"
        )


def _make_thumbnail(image: NDArray[np.uint8], cell: int) -> Image.Image:
    """The whole image in a square cell; small ones are enlarged."""
    picture = Image.fromarray(image)
    scale = cell / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    framed = Image.new("RGB", (cell, cell), SHADE)
    framed.paste(picture.resize(size, Image.Resampling.LANCZOS), ((cell - size[0]) // 2, (cell - size[1]) // 2))
    return framed


def _draw_prompt(pen: ImageDraw.ImageDraw, prompt: Mapping[str, Any], top: int, height: int) -> None:
    """The prompt's text, as many lines as the row has room for, and its tag below."""
    size, step, width = 15, 19, LEFT - MARGIN - 24
    tag = prompt["tag"]
    room = max(1, (height - (18 if tag else 0)) // step)
    lines = wrap_text(prompt["prompt"], size, width)
    if len(lines) > room:
        lines = [*lines[: room - 1], clip_text(lines[room - 1], size, width, more=True)]
    for index, line in enumerate(lines):
        pen.text((MARGIN, top + step * index), line, fill=INK, font=load_font(size))
    if tag:
        pen.text((MARGIN, top + step * len(lines) + 2), clip_text(tag, 12, width), fill=GREY, font=load_font(12))


# ---- text that fits -------------------------------------------------------------------------------------------------


@lru_cache
def load_font(size: int) -> Font:
    for name in FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def make_legible(text: str) -> str:
    """One line of characters that the font has: Pillow's own knows basic Latin, so accents and the rest go."""
    text, found = " ".join(text.split()), load_font(15)
    if isinstance(found, ImageFont.FreeTypeFont) and found.getname()[0] in ("Aileron", None):
        plain = unicodedata.normalize("NFKD", text.replace("±", "+-")).encode("ascii", "ignore").decode()
        return plain.strip() or "(no font for this text)"
    return text


def wrap_text(text: str, size: int, width: int) -> list[str]:
    """Lines no wider than `width`, broken between words, and within a word that is too long for a line."""
    lines, line = [], ""
    for word in make_legible(text).split(" "):
        while load_font(size).getlength(word) > width:
            fits = next(n for n in range(len(word), 0, -1) if load_font(size).getlength(word[:n]) <= width or n == 1)
            lines += [line] if line else []
            lines.append(word[:fits])
            line, word = "", word[fits:]
        joined = f"{line} {word}".strip()
        if load_font(size).getlength(joined) > width:
            lines.append(line)
            joined = word
        line = joined
    return [*lines, line] if line else lines


def clip_text(text: str, size: int, width: int, *, more: bool = False) -> str:
    """The text, or as much of it as `width` holds and dots, as also where there is `more`."""
    text, dots = make_legible(text), "..."
    if not more and load_font(size).getlength(text) <= width:
        return text
    while text and load_font(size).getlength(text + dots) > width:
        text = text[:-1]
    return text.rstrip() + dots


def _format_score(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"
