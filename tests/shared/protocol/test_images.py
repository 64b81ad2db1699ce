"""Images on the wire: everything becomes upright RGB uint8, and nothing is decoded before its size is known."""

from __future__ import annotations

import base64
import contextlib
import io
import struct
import zlib
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
    """A JPEG that claims to be a PNG is refused as a JPEG; a GIF, and animations of either kind, are refused."""
    with pytest.raises(InvalidInput, match="image says image/png but is a JPEG image"):
        images.decode_image(saved(Image.fromarray(NOISE), "JPEG"), "image/png")
    with pytest.raises(InvalidInput, match="image says image/jpeg but is a HEIC image"):
        images.measure_image(b"\x00\x00\x00\x18ftypheic" + bytes(30), "image/jpeg")
    with pytest.raises(UnsupportedMediaType, match="image/gif"):
        images.decode_image(b"GIF89a", "image/gif")
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    with pytest.raises(InvalidInput, match="animation"):
        images.decode_image(saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]), "image/webp")
    with pytest.raises(InvalidInput, match="animation"):
        images.decode_image(saved(frames[0], "PNG", save_all=True, append_images=frames[1:]), "image/png")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(
    "side",
    [
        chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(8 * 2**20))),
        chunk(b"iTXt", b"prompt\0\1\0\0\0" + zlib.compress(bytes(8 * 2**20))),
        chunk(b"iCCP", b"display\0\0" + zlib.compress(bytes(8 * 2**20))),
        chunk(b"tEXt", b"parameters\0" + b"x" * 70 * 2**20),
        chunk(b"tEXt", b"parameters\0" + b"x" * 2**19) * 160,
        chunk(b"iCCP", b"display\0\0not deflated"),
        chunk(b"iTXt", b"x"),
        struct.pack(">I", 4) + b"zTXtabcd" + b"wrong checksum"[:4],
        chunk(b"acTL", struct.pack(">II", 1, 0)) + chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 9, 6, 0, 0, 1, 1, 0, 0)),
    ],
)
def test_a_png_is_its_pixels_whatever_is_beside_them(side: bytes) -> None:
    """Text and profiles that unpack to any size, or are damaged, before the pixels or after them."""
    good = saved(Image.fromarray(NOISE), "PNG")
    for data in (good[:33] + side + good[33:], *([good[:-12] + side + good[-12:]] if b"fcTL" not in side else [])):
        assert images.measure_image(data, "image/png") == (6, 9)
        assert np.array_equal(images.decode_image(data, "image/png"), NOISE)


def test_a_phone_s_jpeg_is_its_first_frame() -> None:
    """MPO: a second view, a depth map or a gain map lies behind the picture that everybody sees."""
    red, blue = (Image.new("RGB", (16, 8), colour) for colour in ("red", "blue"))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(red, "MPO", save_all=True, append_images=[blue, blue], exif=exif, quality=95)
    assert b"MPF" in data
    back = images.decode_image(data, "image/jpeg")
    assert back.shape == (16, 8, 3)
    assert back[..., 0].min() > 240
    assert back[..., 1:].max() < 15
    with pytest.raises(TooLarge):
        images.measure_image(data, "image/jpeg", max_pixels=100)


@pytest.mark.parametrize(
    "segment",
    [
        b"\xff\xe2\x00\x0eICC_PROFILE\0",
        b"\xff\xe2\x00\x09MPF\0zzz",
        b"\xff\xed\x00\x18Photoshop 3.0\x008BIM\x03\xed\0\0",
    ],
)
def test_a_jpeg_is_its_pixels_whatever_is_beside_them(segment: bytes) -> None:
    """A profile, a list of pictures and a Photoshop block that are cut short."""
    plain = saved(Image.fromarray(NOISE), "JPEG")
    decoded = images.decode_image(plain[:2] + segment + plain[2:], "image/jpeg")
    assert np.array_equal(decoded, images.decode_image(plain, "image/jpeg"))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_does_not_damage_the_picture() -> None:
    """It says nothing of which way up the picture is; the rest of EXIF does not matter where it does."""
    exif = Image.Exif()
    exif[0x0112] = 6
    good = saved(Image.new("RGB", (16, 8)), "JPEG", exif=exif)
    at = good.index(b"Exif\0\0") + 6
    for damage in (b"\xff" * 14, b"MM\0*\xff\xff\xff\xff", b""):
        data = good[:at] + damage + good[at + len(damage) :]
        assert images.decode_image(data, "image/jpeg").shape == ((8, 16, 3) if damage else (16, 8, 3))


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
