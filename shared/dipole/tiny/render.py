"""Draw scenes of the tiny world: anti-aliased shapes on a plain background, many images at a time.

Legend: B images, M objects an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dipole.tiny.world import BACKGROUND, COLOURS, SHAPES, SIZE

Floats = NDArray[np.float32]
NO_OBJECT = -1


@dataclass(frozen=True)
class SceneBatch:
    """B scenes of up to M objects. `shape` and `colour` index SHAPES and COLOURS; shape EMPTY means no object.

    `x`, `y` are centres and `radius` half extents, in pixels.
    """

    shape: NDArray[np.int64]  # (B, M)
    colour: NDArray[np.int64]  # (B, M)
    x: Floats  # (B, M)
    y: Floats  # (B, M)
    radius: Floats  # (B, M)


def render_scenes(scenes: SceneBatch) -> NDArray[np.uint8]:
    """Images, uint8 (B, SIZE, SIZE, 3) RGB; later objects cover earlier ones."""
    count, objects = scenes.shape.shape
    palette = np.array(list(COLOURS.values()), np.float32)
    canvas = np.empty((count, SIZE, SIZE, 3), np.float32)
    canvas[:] = BACKGROUND
    grid = np.arange(SIZE, dtype=np.float32) + 0.5
    for m in range(objects):
        dx = grid[None, None, :] - scenes.x[:, m, None, None]  # (B, 1, W)
        dy = grid[None, :, None] - scenes.y[:, m, None, None]  # (B, H, 1)
        for index, name in enumerate(SHAPES):
            rows = np.flatnonzero(scenes.shape[:, m] == index)
            if not rows.size:
                continue
            distance = signed_distance(name, dx[rows], dy[rows], scenes.radius[rows, m, None, None])
            cover = np.clip(0.5 - distance, 0, 1)[..., None]  # one pixel of anti-aliasing
            canvas[rows] += cover * (palette[scenes.colour[rows, m]][:, None, None] - canvas[rows])
    return np.round(canvas).astype(np.uint8)


def signed_distance(shape: str, dx: Floats, dy: Floats, radius: Floats) -> Floats:
    """About how far each pixel lies outside the shape (negative inside), in pixels; arguments broadcast."""
    ax, ay = np.abs(dx), np.abs(dy)
    distance: Floats
    if shape == "circle":
        distance = np.sqrt(dx**2 + dy**2) - radius
    elif shape == "square":
        distance = np.maximum(ax, ay) - 0.88 * radius
    elif shape == "triangle":
        # equilateral, point up
        distance = np.maximum(dy, 0.8660254 * ax - 0.5 * dy) - 0.55 * radius
    elif shape == "cross":
        across = np.maximum(ax - radius, ay - 0.34 * radius)
        distance = np.minimum(across, np.maximum(ay - radius, ax - 0.34 * radius))
    else:
        raise ValueError(f"shape {shape!r} is not one of {SHAPES}")
    return distance
