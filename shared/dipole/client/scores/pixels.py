"""Images as trainers have them, as the uint8 RGB that endpoints are sent. Neither PIL nor torch is imported for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from dipole.errors import InvalidInput
from dipole.protocol.images import Pixels

MARGIN = 1e-3  # by which a decoder may be beyond 0 and 1: it is clipped


def to_pixels(images: Iterable[Any]) -> list[Pixels]:
    """Each as uint8 (H, W, 3). Raises InvalidInput that names the first that is no image.

    A PIL image; an array (H, W, 3); a tensor (3, H, W), or (1, 3, H, W), on any device. Numbers are uint8, or floats
    from 0 to 1.
    """
    return [_read_image(image, f"images[{index}]") for index, image in enumerate(images)]


def _read_image(image: Any, field: str) -> Pixels:
    # by what it can do: importing PIL and torch to ask for their types takes longer than most rewards
    if hasattr(image, "convert"):
        return np.asarray(image.convert("RGB"), np.uint8)
    if hasattr(image, "detach"):
        values = image.detach()
        values = values.float() if values.is_floating_point() else values  # numpy knows no bfloat16
        array = _squeeze(values.cpu().numpy())
        array = array.transpose(1, 2, 0) if array.ndim == 3 else array
        wanted = "(3, H, W)"
    else:
        array, wanted = _squeeze(np.asarray(image)), "(H, W, 3)"
    if array.ndim != 3 or array.shape[2] != 3:
        raise InvalidInput(f"{field} has the shape {np.shape(image)}, and an image is {wanted}", field=field)
    return _to_uint8(array, field)


def _squeeze(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array[0] if array.ndim == 4 and len(array) == 1 else array


def _to_uint8(array: np.ndarray[Any, Any], field: str) -> Pixels:
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if not np.issubdtype(array.dtype, np.floating):
        raise InvalidInput(f"{field} holds {array.dtype}: give uint8, or floats from 0 to 1", field=field)
    if not np.isfinite(array).all() or array.min() < -MARGIN or array.max() > 1 + MARGIN:
        raise InvalidInput(
            f"{field} holds floats that are not from 0 to 1: of images from -1 to 1 give (x + 1) / 2", field=field
        )
    return np.ascontiguousarray(np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8))
