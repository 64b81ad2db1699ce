"""Images as rewards meet them: of every mode and orientation that a file may have, each with the RGB image it means."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from dipole.protocol import images
from dipole.protocol.images import Pixels

RNG = np.random.default_rng(0)


def noise(height: int, width: int) -> Pixels:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def sent(image: Image.Image, media_type: str = "image/png", **options: Any) -> Pixels:
    """The image as it reaches a reward."""
    buffer = io.BytesIO()
    image.save(buffer, media_type.removeprefix("image/").upper(), **options)
    return images.decode_image(buffer.getvalue(), media_type)


def candidates() -> dict[str, tuple[Pixels, Image.Image]]:
    """What reaches a reward, and the RGB image that was meant."""
    rgb, alpha = Image.fromarray(noise(75, 131)), Image.fromarray(np.dstack([noise(40, 31), noise(40, 31)[..., 0]]))
    tall, grey = Image.fromarray(noise(260, 9)), Image.fromarray(noise(33, 64)[..., 0])
    deep = RNG.integers(0, 65536, (50, 51), dtype=np.uint16)
    white = Image.new("RGBA", alpha.size, "white")
    orientation = Image.Exif()
    orientation[0x0112] = 6  # to be shown turned clockwise by a quarter
    return {
        "odd": (sent(rgb), rgb),
        "tall": (sent(tall), tall),
        "rgba": (sent(alpha), Image.alpha_composite(white, alpha).convert("RGB")),
        "grey": (sent(grey), grey.convert("RGB")),
        "16-bit": (sent(Image.fromarray(deep)), Image.fromarray(np.rint(deep / 257).astype(np.uint8)).convert("RGB")),
        "exif": (sent(rgb, exif=orientation), rgb.rotate(-90, expand=True)),
    }
