"""Latents on the wire, in place of images: 8 bytes for what are 192 of pixels, where a reward has the trainer's VAE.

A candidate's are a numpy file of float16 (channels, height, width): what the VAE's decoder is given, z, which a trainer
scales and rounds to the VAE's precision before. Whoever takes them says of which VAE, by its fingerprint, and makes of
them the image that the trainer would:

    image = round(255 * (decode(z) / 2 + 0.5)), clamped to 0 … 255

A VAE in bf16 or fp16 is given the same bits here and there; one in fp32 what was rounded to float16, whose image is
within one level of the trainer's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dipole.errors import InvalidInput
from dipole.protocol import images
from dipole.protocol.schemas import MAX_PIXELS, LatentSpace

LATENTS: Final = "application/x-npy-latents"
Latents = NDArray[np.float16]
DECODER_PARTS: Final = ("decoder.", "post_quant_conv.")  # of a VAE's weights, by their names, what makes an image


def open_latents(
    data: images.Encoded, space: LatentSpace, *, max_pixels: int = MAX_PIXELS, field: str = "image"
) -> tuple[int, Latents]:
    """(pixels of its image, latents (c, h, w)), which are looked at and not copied.

    Raises InvalidInput for what is no such file, and TooLarge, before a value is read, where its image would be.
    """
    shape, dtype, fortran, start = images.read_npy_header(data, field)
    if dtype != np.dtype("<f2") or len(shape) != 3 or shape[0] != space.channels or fortran or min(shape) < 1:
        raise InvalidInput(
            f"{field} must be float16 ({space.channels}, height, width) in C order, not {dtype} {shape} in "
            f"{'Fortran' if fortran else 'C'} order",
            field=field,
        )
    height, width = (side * space.scale for side in shape[1:])
    images.check_size(height, width, max_pixels, field)
    images.check_npy_size(data, start, 2 * shape[0] * shape[1] * shape[2], field)
    return height * width, np.frombuffer(data, np.float16, offset=start).reshape(shape)


def encode_latents(latents: Latents) -> bytes:
    """A numpy file of one candidate's (c, h, w)."""
    return b"".join(latent_parts(latents))


def latent_parts(latents: Latents) -> tuple[bytes, memoryview]:
    """What `encode_latents` joins: the header, and the values where they lie."""
    if latents.dtype != np.float16 or latents.ndim != 3 or 0 in latents.shape:
        raise InvalidInput(f"latents must be float16 (channels, height, width), not {latents.dtype} {latents.shape}")
    return images.array_parts(latents)


def fingerprint_vae(config: Mapping[str, Any], precision: str, weights: Iterable[tuple[str, Any]]) -> str:
    """The name of a VAE as it decodes, equal for equal ones: SHA-256 of

    - its configuration but for what starts with `_`, as JSON with sorted keys and no spaces, `_class_name` in it;
    - the precision that it computes in, as `float32` or `bfloat16`;
    - of each tensor of DECODER_PARTS, in the order of their names: the name, and the bytes in that precision.

    Each is followed by a zero byte. `weights` are names with buffers of bytes, in any order.
    """
    plain = {name: value for name, value in config.items() if not name.startswith("_") or name == "_class_name"}
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode() + b"\0")
    digest.update(precision.encode() + b"\0")
    kept = {name: data for name, data in weights if name.startswith(DECODER_PARTS)}
    for name in sorted(kept):
        digest.update(name.encode() + b"\0")
        digest.update(kept[name])
        digest.update(b"\0")
    return f"sha256:{digest.hexdigest()}"
