"""The demo's pictures: the same prompts and noises before and after, and the curves of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

CELL, GAP, LEFT, TOP = 96, 6, 250, 58  # pixels
RIGHT_COLOUR, WRONG_COLOUR = (30, 150, 70), (205, 60, 50)


def draw_before_after(job: Path, base: dict[str, Any], tuned: dict[str, Any], target: Path, name: str) -> Path:
    """One row a held-out prompt: the base's images, and the trained model's on the same noises.

    A green frame marks an image that shows all that was asked for, a dashed red one an image that does not.
    """
    cell = json.loads((job / "samples/prompts.json").read_text())
    sheets = [Image.open(job / f"samples/step-{which['step']}.png").convert("RGB") for which in (base, tuned)]
    rows, columns = len(cell["prompts"]), sheets[0].width // cell["width"]
    block = columns * (CELL + GAP)
    picture = Image.new("RGB", (LEFT + 2 * block + 3 * GAP, TOP + rows * (CELL + GAP) + GAP), "white")
    draw = ImageDraw.Draw(picture)
    for side, (sheet, which, title) in enumerate(zip(sheets, (base, tuned), ("base", name), strict=True)):
        left = LEFT + side * (block + 2 * GAP)
        strict = which["scores"].get("shapes.strict", {}).get("mean")
        figure = f": {strict:.0%} right on all {len(which['prompts'])} held-out prompts" if strict is not None else ""
        draw.text((left, 14), f"{title}{figure}", fill="black", font=load_font(17))
        for row in range(rows):
            marks = which["prompts"][row]["scores"].get("shapes.strict", [None] * columns)
            for column in range(columns):
                box = (
                    column * cell["width"],
                    row * cell["height"],
                    (column + 1) * cell["width"],
                    (row + 1) * cell["height"],
                )
                at = (left + column * (CELL + GAP), TOP + row * (CELL + GAP))
                picture.paste(sheet.crop(box).resize((CELL, CELL), Image.Resampling.LANCZOS), at)
                _draw_frame(draw, at, marks[column])
    _draw_prompts(draw, cell["prompts"])
    picture.save(target)
    return target


def draw_comparison(
    prompts: Sequence[str],
    sides: Mapping[str, Sequence[Sequence[Image.Image]]],
    target: Path,
) -> Path:
    """One row a prompt, a block of images a side: `sides[title][row]` are as many images in each row as in any other.

    `target` appears whole or not at all.
    """
    columns = max(len(images) for rows in sides.values() for images in rows)
    block = columns * (CELL + GAP)
    width = LEFT + len(sides) * block + (len(sides) + 1) * GAP
    picture = Image.new("RGB", (width, TOP + len(prompts) * (CELL + GAP) + GAP), "white")
    draw = ImageDraw.Draw(picture)
    for side, (title, rows) in enumerate(sides.items()):
        left = LEFT + side * (block + 2 * GAP)
        draw.text((left, 14), title, fill="black", font=load_font(17))
        for row, images in enumerate(rows):
            for column, image in enumerate(images):
                at = (left + column * (CELL + GAP), TOP + row * (CELL + GAP))
                picture.paste(image.convert("RGB").resize((CELL, CELL), Image.Resampling.LANCZOS), at)
    _draw_prompts(draw, prompts)
    partial = target.with_name(f".{target.name}")
    picture.save(partial, format="PNG")
    return partial.replace(target)


def _draw_prompts(draw: ImageDraw.ImageDraw, prompts: Sequence[str]) -> None:
    """At the left of their rows, in lines of their column's width."""
    for row, prompt in enumerate(prompts):
        words, line, y = prompt.split(), "", TOP + row * (CELL + GAP) + CELL // 2 - 20
        for word in [*words, ""]:
            if not word or draw.textlength(f"{line} {word}", font=load_font(17)) > LEFT - 30:
                draw.text((14, y), line, fill="black", font=load_font(17))
                line, y = word, y + 21
            else:
                line = f"{line} {word}".strip()
    draw.text((14, 14), "prompt", fill=(90, 90, 90), font=load_font(17))


def _draw_frame(draw: ImageDraw.ImageDraw, at: tuple[int, int], right: float | None) -> None:
    """Solid green or dashed red, so that colour does not speak alone."""
    (x, y), edge = at, CELL - 1
    if right is None:
        return
    if right:
        draw.rectangle((x, y, x + edge, y + edge), outline=RIGHT_COLOUR, width=3)
        return
    for offset in range(0, CELL, 12):
        for line in ((x + offset, y, x + offset + 6, y), (x + offset, y + edge, x + offset + 6, y + edge)):
            draw.line(line, fill=WRONG_COLOUR, width=2)
        for line in ((x, y + offset, x, y + offset + 6), (x + edge, y + offset, x + edge, y + offset + 6)):
            draw.line(line, fill=WRONG_COLOUR, width=2)


def load_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def draw_curves(steps: list[dict[str, Any]], target: Path) -> Path:
    """Rewards, drift losses and speed over the updates; `steps` are the data of the job's step events, in order."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 3.6), constrained_layout=True)
    x = [step["step"] for step in steps]
    for name in sorted({name for step in steps for name in step["rewards"]}):
        values = [step["rewards"].get(name) for step in steps]
        axes[0].plot(x, smooth_values(values), label=name)
    axes[0].set_title("reward of the candidates (running mean of 10)")
    for name, label in (("drift_pref", "preference"), ("drift_ref", "reference")):
        axes[1].plot(x, [step[name] for step in steps], label=label)
    axes[1].set_title("drift losses")
    for name in ("generate", "wait", "update"):
        axes[2].plot(x, [step["seconds"][name] for step in steps], label=name)
    axes[2].set_title("seconds a step")
    for axis in axes:
        axis.set_xlabel("update")
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(target, dpi=110)
    pyplot.close(figure)
    return target


def smooth_values(values: list[float | None], width: int = 10) -> list[float]:
    smoothed = []
    for end in range(1, len(values) + 1):
        window = [value for value in values[max(0, end - width) : end] if value is not None]
        smoothed.append(sum(window) / len(window) if window else float("nan"))
    return smoothed
