"""Images to rank: scenes of the tiny world, drawn large enough to look at, some right and some wrong."""

from __future__ import annotations

import io
import re

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dipole.tiny.render import signed_distance
from dipole.tiny.world import BACKGROUND, COLOURS, SHAPES, all_prompts

NAMES = list(COLOURS)


def choose_prompts(count: int) -> list[str]:
    """Prompts that ask for two coloured things, spread over all of them."""
    texts = [prompt.text for prompt in all_prompts() if prompt.tag == "color_attr"]
    return [texts[(index * 37) % len(texts)] for index in range(count)]


def draw_candidates(prompt: str, count: int = 4, size: int = 512, seed: int = 0) -> list[NDArray[np.uint8]]:
    """uint8 RGB (size, size, 3) each: the first as the prompt asks, the others with one thing wrong each.

    Prompts that are not of the tiny world get scenes of a red circle and a blue square.
    """
    found = re.fullmatch(r"a (\w+) (\w+) and a (\w+) (\w+)", prompt)
    asked = [found.group(1, 2), found.group(3, 4)] if found else [("red", "circle"), ("blue", "square")]
    random = np.random.default_rng(seed)
    images = []
    for index in range(count):
        things = list(asked)
        if index % 4 == 1:
            things[1] = (NAMES[(NAMES.index(things[1][0]) + 2) % len(NAMES)], things[1][1])
        elif index % 4 == 2:
            things = things[:1]
        elif index % 4 == 3:
            things[0] = (things[0][0], SHAPES[(SHAPES.index(things[0][1]) + 1) % len(SHAPES)])
        images.append(_draw_scene(things, size, random))
    return images


def _draw_scene(things: list[tuple[str, str]], size: int, random: np.random.Generator) -> NDArray[np.uint8]:
    canvas = np.empty((size, size, 3), np.float32)
    canvas[:] = BACKGROUND
    grid = np.arange(size, dtype=np.float32) + 0.5
    for place, (colour, shape) in enumerate(things):
        x, y = size * (0.3 + 0.4 * place + random.uniform(-0.06, 0.06)), size * random.uniform(0.3, 0.7)
        radius = np.float32(size * random.uniform(0.13, 0.21))
        distance = signed_distance(shape, grid[None, :] - np.float32(x), grid[:, None] - np.float32(y), radius)
        cover = np.clip(0.5 - distance, 0, 1)[..., None]
        canvas += cover * (np.array(COLOURS[colour], np.float32) - canvas)
    return np.round(canvas).astype(np.uint8)


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
