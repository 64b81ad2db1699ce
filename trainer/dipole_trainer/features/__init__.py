"""Feature spaces φ, in which samples drift: latents in, several named sets of vectors (keys) out.

A feature space is a function from latents (K, c, h, w) to `{key: (K, T, D)}`, T tokens of D features a sample,
differentiable in its input, frozen in its weights.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from dipole.errors import InvalidInput
from dipole_trainer.features.tiny import TinyFeatures
from dipole_trainer.generators.one_step import TINY_TURBO

Features = Callable[[Tensor], dict[str, Tensor]]

KNOWN = ("tiny", "latents")


def build(name: str, model: str, *, device: str = "cpu") -> Features:
    """The feature space of that name, on `device`; `auto` is the model's own."""
    if name == "auto":
        name = "tiny" if model == "tiny-turbo" else "latents"
    if name == "tiny":
        return TinyFeatures.load(TINY_TURBO / "encoder", device=device)
    if name == "latents":
        return latents
    raise InvalidInput(f"{name!r} is not a feature space; known are auto, {', '.join(KNOWN)}", field="features")


def latents(x: Tensor) -> dict[str, Tensor]:
    """The raw latents as one vector a sample: (K, 1, c·h·w)."""
    return {"latents": x.flatten(1)[:, None]}
