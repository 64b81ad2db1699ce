"""Images of a group that travels as latents: decoded when somebody has use for them, and then once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Decode = Callable[[], tuple[NDArray[np.uint8], Mapping[int, str]]]
"""Gives images (K, H, W, 3), and why there is none by row. Called by the thread that asks, which must be the loop's."""


class LazyImages:
    """K images. `numpy.asarray` of it decodes them."""

    def __init__(self, count: int, decode: Decode) -> None:
        self._count, self._decode = count, decode
        self._found: tuple[NDArray[np.uint8], Mapping[int, str]] | None = None

    def __len__(self) -> int:
        return self._count

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.uint8]:
        return self.read()[0]

    def read(self) -> tuple[NDArray[np.uint8], Mapping[int, str]]:
        """The images, and why there is none by row."""
        if self._found is None:
            self._found = self._decode()
        return self._found

    @property
    def is_decoded(self) -> bool:
        return self._found is not None

    def of_rows(self, rows: list[int]) -> LazyImages:
        """Some of them; all are decoded together."""

        def decode() -> tuple[NDArray[np.uint8], Mapping[int, str]]:
            images, flaws = self.read()
            return images[rows], {place: flaws[row] for place, row in enumerate(rows) if row in flaws}

        return LazyImages(len(rows), decode)


def read_images(images: NDArray[np.uint8] | LazyImages) -> tuple[NDArray[np.uint8], Mapping[int, str]]:
    """Images as an array, and why there is none by row, as far as that was not known before."""
    return images.read() if isinstance(images, LazyImages) else (images, {})
