"""How colourful an image is, from the image alone: Hasler and Süsstrunk's metric, no weights.

D. Hasler, S. Süsstrunk, "Measuring colourfulness in natural images", Human Vision and Electronic Imaging VIII, 2003:
with the opponent channels rg = R − G and yb = (R + G)/2 − B, the metric is
sqrt(σ_rg² + σ_yb²) + 0.3·sqrt(μ_rg² + μ_yb²).
Their scale calls 0 "not colourful" and 109 "extremely colourful"; divided by 109, photographs lie in about 0…1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import JsonValue

from dipole_rewards.reward import Golden, Pixels, Reward, Scores

EXTREMELY_COLOURFUL = 109.0


def measure_colourfulness(image: Pixels) -> tuple[float, float]:
    """(spread, mean) of an RGB uint8 image (H, W, 3): the metric is their sum."""
    red, green, blue = np.moveaxis(image.astype(np.int16), -1, 0)
    rg, yb_twice = red - green, red + green - 2 * blue  # whole numbers: a quarter of the memory of float64
    spread = np.hypot(rg.std(), yb_twice.std() / 2)
    return float(spread), float(0.3 * np.hypot(rg.mean(), yb_twice.mean() / 2))


class Colourfulness(Reward):
    """The prompt is ignored; a grey image scores 0."""

    name = "colourfulness"
    deterministic = True
    model = "hasler-susstrunk-2003"

    def score(self, *, prompt: str, images: Sequence[Pixels], metadata: Mapping[str, JsonValue] | None) -> Scores:
        parts = [measure_colourfulness(image) for image in images]
        return Scores(
            [(spread + mean) / EXTREMELY_COLOURFUL for spread, mean in parts],
            sub_scores=[{"spread": s / EXTREMELY_COLOURFUL, "mean": m / EXTREMELY_COLOURFUL} for s, m in parts],
        )

    def golden(self) -> Golden:
        """Left half red, right half grey: rg is 255 or 0, yb 127.5 or 0, so σ = μ = half of (255, 127.5)."""
        image = np.full((4, 4, 3), 128, np.uint8)
        image[:, :2] = (255, 0, 0)
        return Golden(prompt="", image=image, score=1.3 * np.hypot(127.5, 63.75) / EXTREMELY_COLOURFUL, tolerance=1e-6)
