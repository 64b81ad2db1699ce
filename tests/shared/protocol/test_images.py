"""Images on the wire: everything becomes upright RGB uint8, and nothing is decoded before its size is known."""

from __future__ import annotations

import base64
import contextlib
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dipole.conformance.inputs import oversized_png
from dipole.errors import InvalidInput, TooLarge, UnsupportedMediaType
from dipole.protocol import images

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(("encode", "media_type"), [(images.encode_png, "image/png"), (images.encode_npy, images.NPY)])
def test_what_a_trainer_sends_comes_back_bit_equal(encode: Any, media_type: Any) -> None:
    """Encoding and decoding PNG and npy loses nothing, and the result may be written to."""
    back = images.decode_image(encode(NOISE), media_type)
    assert np.array_equal(back, NOISE)
    assert back.flags.writeable
    assert back.flags.c_contiguous


def test_lossless_webp_is_bit_equal_and_jpeg_close() -> None:
    """WebP lossless loses nothing; JPEG of a smooth image stays close."""
    assert np.array_equal(
        images.decode_image(saved(Image.fromarray(NOISE), "WEBP", lossless=True), "image/webp"), NOISE
    )
    smooth = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    back = images.decode_image(saved(Image.fromarray(smooth), "JPEG", quality=95), "image/jpeg")
    assert np.abs(back.astype(int) - smooth).max() <= 4


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    """65535 becomes 255 and the middle stays the middle."""
    grey = np.array([[0, 32896, 65535]], np.uint16)
    back = images.decode_image(saved(Image.fromarray(grey), "PNG"), "image/png")
    assert back.tolist() == [[[0] * 3, [128] * 3, [255] * 3]]


def test_transparency_is_laid_over_white() -> None:
    """A clear pixel is white, a half-clear black one grey, in RGBA, LA and palettes alike."""
    rgba = np.array([[[255, 0, 0, 0], [0, 0, 0, 128], [10, 20, 30, 255]]], np.uint8)
    back = images.decode_image(saved(Image.fromarray(rgba), "PNG"), "image/png")
    assert back.tolist() == [[[255] * 3, [127] * 3, [10, 20, 30]]]
    assert images.decode_image(saved(Image.new("LA", (1, 1), (0, 0)), "PNG"), "image/png").tolist() == [[[255] * 3]]
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([9, 9, 9, 40, 50, 60])
    assert images.decode_image(saved(palette, "PNG"), "image/png")[0, 0].tolist() == [40, 50, 60]
    assert images.decode_image(saved(palette, "PNG", transparency=1), "image/png")[0, 0].tolist() == [255] * 3


def test_exif_orientation_is_applied() -> None:
    """A photo stored on its side is decoded upright."""
    exif = Image.Exif()
    exif[0x0112] = 6  # stored rotated, to be shown turned by 90°
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, :8] = 255
    upright = images.decode_image(saved(Image.fromarray(wide), "JPEG", exif=exif, quality=95), "image/jpeg")
    assert upright.shape == (16, 8, 3)
    assert upright[:4].min() > 200
    assert upright[-4:].max() < 60


def test_cmyk_jpeg_and_bilevel_png_become_rgb() -> None:
    """Modes that a reward has never heard of arrive as RGB."""
    assert images.decode_image(saved(Image.new("CMYK", (4, 4)), "JPEG"), "image/jpeg").shape == (4, 4, 3)
    assert images.decode_image(saved(Image.new("1", (4, 4), 1), "PNG"), "image/png").min() == 255


def test_size_is_refused_before_decoding() -> None:
    """A 100-megapixel PNG of under 100 bytes, and an npy over the bound, are TooLarge and name their field."""
    bomb = oversized_png()
    assert len(bomb) < 100
    for data, kind, bound in ((bomb, "image/png", 2**24), (images.encode_npy(NOISE), images.NPY, 53)):
        with pytest.raises(TooLarge, match=r"candidates\[3\]\.image") as caught:
            images.measure_image(data, kind, max_pixels=bound, field="candidates[3].image")
        assert caught.value.field == "candidates[3].image"


def test_a_header_that_lies_is_an_error_not_a_crash() -> None:
    """A PNG whose header passes the bound and whose data is missing is InvalidInput."""
    with pytest.raises(InvalidInput, match="cannot be decoded"):
        images.decode_image(oversized_png(100, 100), "image/png")


def npy_file(array: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        npy_file(np.array([{"a": 1}], dtype=object), allow_pickle=True),
        npy_file(np.zeros((4, 4, 3), np.float32)),
        npy_file(np.zeros((4, 4), np.uint8)),
        npy_file(np.zeros((4, 4, 4), np.uint8)),
        npy_file(np.zeros((0, 4, 3), np.uint8)),
        npy_file(np.asfortranarray(np.zeros((4, 5, 3), np.uint8))),
        npy_file(np.zeros((4, 4, 3), np.uint8))[:-1],
        npy_file(np.zeros((4, 4, 3), np.uint8)) + b"\0",
        b"PK\x03\x04 an npz is a zip",
        b"\x93NUMPY\x03\x00" + b"\x00" * 20,
        b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 16,
        b"",
    ],
)
def test_only_plain_uint8_npy_passes(data: bytes) -> None:
    """Pickles, npz, other types, shapes, orders, lengths and versions are InvalidInput."""
    with pytest.raises(InvalidInput, match=r"^image "):
        images.decode_image(data, images.NPY)


def test_the_media_type_decides_the_decoder() -> None:
    """A JPEG that claims to be a PNG, a GIF, and an animation are refused."""
    with pytest.raises(InvalidInput, match="says image/png"):
        images.decode_image(saved(Image.fromarray(NOISE), "JPEG"), "image/png")
    with pytest.raises(UnsupportedMediaType, match="image/gif"):
        images.decode_image(b"GIF89a", "image/gif")
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    with pytest.raises(InvalidInput, match="animation"):
        images.decode_image(saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]), "image/webp")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_files_never_raise_anything_else(kind: str, data: st.DataObject) -> None:
    """Any bytes of a file overwritten or cut off: an array or InvalidInput, never another exception."""
    good = bytearray(saved(Image.fromarray(NOISE), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(good[: data.draw(st.integers(0, len(good)))])
    with contextlib.suppress(InvalidInput):
        assert images.decode_image(cut, f"image/{kind.lower()}", max_pixels=10_000).shape[2] == 3


def test_base64_is_strict_and_urls_are_named() -> None:
    """Whitespace, URLs and data: URIs are refused; the field is named."""
    assert images.decode_base64(base64.b64encode(b"abc").decode()) == b"abc"
    for wrong in ("YW Jj", "YWJ", "http://example.org/a.png", "data:image/png;base64,YWJj", "é"):
        with pytest.raises(InvalidInput, match=r"candidates\[0\]\.image\.data"):
            images.decode_base64(wrong, field="candidates[0].image")


def test_encoding_refuses_what_is_no_image() -> None:
    """Floats and batches are not silently converted."""
    for wrong in (np.zeros((4, 4, 3)), np.zeros((2, 4, 4, 3), np.uint8), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(InvalidInput, match="uint8"):
            images.encode_png(wrong)  # type: ignore[arg-type]
