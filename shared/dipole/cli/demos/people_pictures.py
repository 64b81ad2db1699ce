"""The demo's picture: the same prompts on the same noises, drawn by the base and by what people made of it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

CELL, GAP, LEFT, TOP = 96, 6, 250, 58  # pixels
LINE_CHARS, LINE_HEIGHT = 26, 21
INK, GREY, PAPER = "black", (90, 90, 90), "white"


def draw_comparison(prompts: Sequence[str], sides: Mapping[str, Sequence[Sequence[Image.Image]]], target: Path) -> Path:
    """A row a prompt, a block of images a side: `sides[title][row]`, as many in each row. `target` appears whole."""
    font = ImageFont.load_default(17)
    columns = max(len(images) for rows in sides.values() for images in rows)
    block = columns * (CELL + GAP)
    width = LEFT + len(sides) * block + (len(sides) + 1) * GAP
    picture = Image.new("RGB", (width, TOP + len(prompts) * (CELL + GAP) + GAP), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((14, 14), "prompt", fill=GREY, font=font)
    for row, prompt in enumerate(prompts):
        lines = textwrap.wrap(prompt, LINE_CHARS)[: CELL // LINE_HEIGHT]
        top = TOP + row * (CELL + GAP) + (CELL - LINE_HEIGHT * len(lines)) // 2
        for number, line in enumerate(lines):
            draw.text((14, top + number * LINE_HEIGHT), line, fill=INK, font=font)
    for side, (title, rows) in enumerate(sides.items()):
        left = LEFT + side * (block + 2 * GAP)
        draw.text((left, 14), title, fill=INK, font=font)
        for row, images in enumerate(rows):
            for column, image in enumerate(images):
                at = (left + column * (CELL + GAP), TOP + row * (CELL + GAP))
                picture.paste(image.convert("RGB").resize((CELL, CELL), Image.Resampling.LANCZOS), at)
    partial = target.with_name(f".{target.name}")
    picture.save(partial, format="PNG")
    return partial.replace(target)
