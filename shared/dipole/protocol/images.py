"""Images on the wire: bytes of a declared media type to RGB uint8 (H, W, 3) arrays and back.

Hostile input is the normal case. `open_image` reads a header alone and refuses by size before a pixel is decoded; its
`decode` then gives an upright RGB array whatever the file was: EXIF orientation applied, transparency laid over
white, 16 bits scaled to 8, palette and greyscale expanded. Errors name the field they were found in, as
`candidates[3].image`."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Final

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from dipole.errors import InvalidInput, TooLarge, UnsupportedMediaType
from dipole.protocol import file_kinds
from dipole.protocol.schemas import MAX_PIXELS, MediaType

Pixels = NDArray[np.uint8]
Encoded = bytes | bytearray

NPY: Final = "application/x-npy"
MEDIA_TYPES: Final[tuple[MediaType, ...]] = ("image/png", "image/webp", "image/jpeg", NPY)
# Not by Image.open: that makes a phone's JPEG with a depth map or a second view behind it an animation (MPO).
_DECODERS: Final[dict[str, type[ImageFile.ImageFile]]] = {
    "image/png": PngImagePlugin.PngImageFile,
    "image/webp": WebPImagePlugin.WebPImageFile,
    "image/jpeg": JpegImagePlugin.JpegImageFile,
}
# magic, length, and the 10,000 characters that numpy parses at most
MAX_NPY_HEADER_BYTES: Final = 2**14
# what a PNG's pixels are made of, which way up they are, and whether there are several
_PIXEL_CHUNKS: Final = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf", b"acTL", b"fcTL"))
# of a JPEG's application segments: JFIF and Adobe say what its colours are, EXIF which way up it is
_PIXEL_SEGMENTS: Final = (b"JFIF\0", b"Exif\0", b"Adobe")
_APPLICATION_MARKERS: Final = range(0xE0, 0xF0)
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class OpenedImage:
    """An encoded image whose header was read and is within bounds: its size in pixels as stored, and its decoder."""

    height: int
    width: int
    decode: Callable[[], Pixels]
    """A writable, contiguous RGB uint8 array (H, W, 3). Raises InvalidInput for what is damaged behind its header."""


def hash_all(parts: Sequence[Encoded | memoryview]) -> list[bytes]:
    """SHA-256 of each, side by side where there are cores: hashing lets go of the interpreter's lock."""
    return list(_hashing_threads().map(lambda part: hashlib.sha256(part).digest(), parts))


def hash_content(images: Sequence[NDArray[Any]]) -> str:
    """One SHA-256 of all, in hex: equal where their bytes are, whatever they were encoded as."""
    return hashlib.sha256(b"".join(hash_all([pixel_bytes(image) for image in images]))).hexdigest()


@cache
def _hashing_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="hashing")


os.register_at_fork(after_in_child=_hashing_threads.cache_clear)  # a child has the pool, and none of its threads


def pixel_bytes(images: NDArray[Any]) -> memoryview:
    """An array's bytes in C order, without a copy where they lie so."""
    return np.ascontiguousarray(images).view(np.uint8).data.cast("B")


def decode_base64(data: str, *, field: str = "image") -> bytes:
    """Strict base64; whitespace, URLs and data: URIs are refused by name."""
    if data[:5].lower() in ("data:", "http:", "https"):
        raise InvalidInput(
            f"{field}.data must be base64 of the image's bytes; URLs are never fetched", field=f"{field}.data"
        )
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(f"{field}.data is not valid base64: {error}", field=f"{field}.data") from None


def open_image(data: Encoded, media_type: str, *, max_pixels: int = MAX_PIXELS, field: str = "image") -> OpenedImage:
    """Read the header alone. Pixels of npy stay where they are in a bytearray, and are copied out of bytes.

    Raises UnsupportedMediaType, TooLarge, or InvalidInput for what is not a single still image of that type.
    """
    if media_type not in MEDIA_TYPES:
        raise UnsupportedMediaType(
            f"{field}.media_type {media_type!r} is not one of {', '.join(MEDIA_TYPES)}", field=f"{field}.media_type"
        )
    if media_type == NPY:
        (height, width), start = _parse_npy_header(data, field)
        decode = partial(_take_npy_pixels, data, start, height, width)
    else:
        data = bytes(data)
        with _open_file(data, media_type, field) as image:
            width, height = image.size
        decode = partial(_decode_file, data, media_type, field)
    check_size(height, width, max_pixels, field)
    return OpenedImage(height, width, decode)


def measure_image(
    data: Encoded, media_type: str, *, max_pixels: int = MAX_PIXELS, field: str = "image"
) -> tuple[int, int]:
    """(height, width) as stored, from the header alone. Raises as `open_image` does."""
    opened = open_image(data, media_type, max_pixels=max_pixels, field=field)
    return opened.height, opened.width


def decode_image(data: Encoded, media_type: str, *, max_pixels: int = MAX_PIXELS, field: str = "image") -> Pixels:
    """Bytes to a writable, contiguous RGB uint8 array (H, W, 3). Raises as `open_image` and its `decode` do."""
    return open_image(data, media_type, max_pixels=max_pixels, field=field).decode()


def _take_npy_pixels(data: Encoded, start: int, height: int, width: int) -> Pixels:
    pixels = np.frombuffer(data, np.uint8, offset=start).reshape(height, width, 3)
    return pixels if pixels.flags.writeable else pixels.copy()


def _decode_file(data: bytes, media_type: str, field: str) -> Pixels:
    try:
        with _open_file(data, media_type, field) as image:
            return _convert_to_rgb(_turn_upright(image))
    except InvalidInput:
        raise
    except (
        Exception
    ) as error:  # decoders raise anything on damaged data: OSError, SyntaxError, struct.error, IndexError …
        raise InvalidInput(f"{field} cannot be decoded as {media_type}: {_first_line(error)}", field=field) from None


def encode_png(pixels: Pixels) -> bytes:
    """Lossless PNG of an RGB uint8 array (H, W, 3); compressed lightly, because it only crosses a network once."""
    buffer = io.BytesIO()
    Image.fromarray(_check_pixels(pixels)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def encode_npy(pixels: Pixels) -> bytes:
    """The fast lane: a numpy file, version 1.0, C order, of an RGB uint8 array (H, W, 3)."""
    return b"".join(npy_parts(pixels))


def npy_parts(pixels: Pixels) -> tuple[bytes, memoryview]:
    """What `encode_npy` joins: the header, and the pixels where they lie."""
    return array_parts(_check_pixels(pixels))


def array_parts(array: NDArray[Any]) -> tuple[bytes, memoryview]:
    """Any array as a numpy file, version 1.0 and in C order: its header, and its values where they lie."""
    array = np.ascontiguousarray(array)
    buffer = io.BytesIO()
    npy.write_array_header_1_0(buffer, npy.header_data_from_array_1_0(array))
    return buffer.getvalue(), pixel_bytes(array)


def _check_pixels(pixels: Pixels) -> Pixels:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise InvalidInput(f"an image must be uint8 (height, width, 3), not {pixels.dtype} {pixels.shape}")
    return pixels


def check_size(height: int, width: int, max_pixels: int, field: str) -> None:
    """Raise TooLarge for an image of more pixels."""
    if height * width > max_pixels:
        message = f"{field} has {width}x{height} = {height * width} pixels; at most {max_pixels} are accepted"
        raise TooLarge(f"{message}: send a smaller image", field=field)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def read_npy_header(data: Encoded, field: str) -> tuple[tuple[int, ...], np.dtype[Any], bool, int]:
    """(shape, dtype, whether in Fortran's order, offset of the values) of a numpy file, of which nothing else is read.

    Raises InvalidInput for what is none of version 1.0 or 2.0.
    """
    stream = io.BytesIO(data[:MAX_NPY_HEADER_BYTES])
    try:
        version = npy.read_magic(stream)
        readers: dict[tuple[int, int], Any] = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"npy version {version} is not 1.0 or 2.0")
        shape, fortran, dtype = readers[version](stream)
    except (
        Exception
    ) as error:  # the header is parsed as a Python literal: ValueError, but also TokenError, RecursionError …
        raise InvalidInput(f"{field} is not a .npy file: {_first_line(error)}", field=field) from None
    return shape, dtype, fortran, stream.tell()


def check_npy_size(data: Encoded, start: int, expected: int, field: str) -> None:
    """Raises InvalidInput unless so many bytes of values come after the header."""
    if (found := len(data) - start) != expected:
        raise InvalidInput(f"{field} declares {expected} bytes of values but carries {found}", field=field)


def _parse_npy_header(data: Encoded, field: str) -> tuple[tuple[int, int], int]:
    """((height, width), offset of the pixels). Only plain uint8 (H, W, 3) in C order with exactly its bytes passes."""
    shape, dtype, fortran, start = read_npy_header(data, field)
    if dtype != np.dtype(np.uint8) or len(shape) != 3 or shape[2] != 3 or fortran or min(shape) < 1:
        order = "Fortran" if fortran else "C"
        raise InvalidInput(
            f"{field} must be uint8 (height, width, 3) in C order, not {dtype} {shape} in {order} order", field=field
        )
    check_npy_size(data, start, shape[0] * shape[1] * 3, field)
    return (shape[0], shape[1]), start


def _open_file(data: bytes, media_type: str, field: str) -> Image.Image:
    """Pillow's lazy open, with the one decoder that the media type names; its caller judges the size."""
    try:
        if file_kinds.recognize_image(data) != media_type:
            found = file_kinds.recognize_file(data[: file_kinds.HEAD_BYTES])
            raise InvalidInput(f"{field} says {media_type} but is {found}", field=field)
        if media_type == "image/png":
            data = _drop_side_chunks(data)
        if media_type == "image/jpeg":
            data = _drop_side_segments(data)
        image = _DECODERS[media_type](io.BytesIO(data))
    except InvalidInput:
        raise
    except Exception as error:
        # as in decode: a damaged header raises anything
        raise InvalidInput(f"{field} says {media_type} but is damaged: {_first_line(error)}", field=field) from None
    if getattr(image, "is_animated", False):
        image.close()
        raise InvalidInput(f"{field} is an animation; send a single still image", field=field)
    return image


def _drop_side_chunks(data: bytes) -> bytes:
    """A PNG without what no pixel is made of: workflows as text, colour profiles. They may unpack to any size, or be
    damaged, and Pillow would refuse the image for it.
    """
    kept, at = [data[:8]], 8
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] in _PIXEL_CHUNKS:
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def _drop_side_segments(data: bytes) -> bytes:
    """A JPEG without profiles, thumbnails and the like, which may be damaged too. What follows the first scan stays."""
    kept, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] not in (0xDA, 0xFF):
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] not in _APPLICATION_MARKERS or data[at + 4 : at + 9] in _PIXEL_SEGMENTS:
            kept.append(data[at:end])
        at = end
    return b"".join([*kept, data[at:]])


def _turn_upright(image: Image.Image) -> Image.Image:
    """As EXIF says that it is to be shown. Damaged EXIF says nothing: Pillow's own exif_transpose would raise."""
    image.load()
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return image
    return image if turn is None else image.transpose(turn)


def _convert_to_rgb(image: Image.Image) -> Pixels:
    # 16-bit greyscale: Pillow's convert would clip, not scale
    if image.mode.startswith("I") or image.mode == "F":
        grey = np.asarray(image).astype(np.float64)
        grey8 = np.clip(np.rint(grey / 257.0), 0, 255).astype(np.uint8)
        return np.repeat(grey8[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    return np.array(image.convert("RGB"), dtype=np.uint8)
