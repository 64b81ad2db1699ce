"""What the checks send: small pictures, requests of them, and files that promise more or hold less than they say."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from dipole.protocol import images

PROMPT = "a photo of a red square"
BIG_SIDE = 512  # a noise PNG of this side is 800 kB


def make_swatch(index: int = 0, size: int = 32) -> images.Pixels:
    """A small image that differs with `index`: a coloured square on grey."""
    pixels = np.full((size, size, 3), 128, np.uint8)
    pixels[size // 4 : size // 2, size // 4 : size // 2] = ((index * 67) % 256, (200 + index * 31) % 256, 40)
    return pixels


def make_noise(side: int = BIG_SIDE) -> images.Pixels:
    """An image that does not compress."""
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)


def encode_image(pixels: images.Pixels, media_type: str = "image/png") -> bytes:
    if media_type == images.NPY:
        return images.encode_npy(pixels)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, media_type.partition("/")[2], lossless=True)
    return buffer.getvalue()


def raw_image(data: bytes, media_type: str = "image/png") -> dict[str, Any]:
    """The `image` of a JSON candidate, of any bytes."""
    return {"media_type": media_type, "data": base64.b64encode(data).decode()}


def image_part(pixels: images.Pixels, media_type: str = "image/png") -> dict[str, Any]:
    """The `image` of a JSON candidate."""
    return raw_image(encode_image(pixels, media_type), media_type)


def rank_request(pixels: Sequence[images.Pixels] | int = 3, *, ids: str = "id-", **changes: Any) -> dict[str, Any]:
    """A RankRequest of these images, or of so many swatches; `changes` are its other fields."""
    listed = [make_swatch(index) for index in range(pixels)] if isinstance(pixels, int) else pixels
    candidates = [{"id": f"{ids}{index}", "image": image_part(one)} for index, one in enumerate(listed)]
    return {"prompt": PROMPT, "candidates": candidates, **changes}


def request_with_image(image: Mapping[str, Any]) -> dict[str, Any]:
    """A request whose second candidate carries `image`."""
    asked = rank_request()
    asked["candidates"][1]["image"] = dict(image)
    return asked


def multipart_request(
    kind: str, metadata: Mapping[str, Any] | None, prompt: str | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A request, and the httpx arguments that send it as multipart with parts of this media type."""
    asked = rank_request(metadata=metadata, prompt=PROMPT if prompt is None else prompt)
    for candidate in asked["candidates"]:
        candidate["image"] = {"media_type": kind}
    files = [
        (candidate["id"], (candidate["id"], encode_image(make_swatch(index), kind), kind))
        for index, candidate in enumerate(asked["candidates"])
    ]
    return asked, {"data": {"request": json.dumps(asked)}, "files": files}


def oversized_png(width: int = 10_000, height: int = 10_000) -> bytes:
    """A PNG of 100 megapixels in under 100 bytes: a header that promises more than anybody should decode."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return _assemble_png(header, zlib.compress(b"\0" * 64))


def white_png(width: int, height: int) -> bytes:
    """A whole PNG of one bit a pixel: as many pixels as one likes in few bytes, and nothing wrong with it."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    row = b"\0" + b"\xff" * ((width + 7) // 8)
    return _assemble_png(header, zlib.compress(row * height, 1))


def odd_pngs() -> dict[str, bytes]:
    """Images that are right and not RGB 8 bit squares."""
    modes = {"greyscale": "L", "a palette": "P", "transparency": "RGBA", "16 bits": "I;16", "one bit": "1"}
    made = {what: Image.new(mode, (24, 16)) for what, mode in modes.items()}
    sizes = {"one pixel": (1, 1), "one row": (200, 1), "one column": (1, 200)}
    made |= {what: Image.new("RGB", size, (200, 40, 40)) for what, size in sizes.items()}
    return {what: _encode_png(image) for what, image in made.items()}


def _encode_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _assemble_png(header: bytes, data: bytes) -> bytes:
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
