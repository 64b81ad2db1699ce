"""Pairs files: for a prompt, an image that was chosen and one that was rejected; checked row by row, so that a broken
one is named. No torch.

    {"prompt": "a red square", "chosen": "<base64 of a PNG, WebP or JPEG>", "rejected": "…", "metadata": {"rater": 7}}

Parquet (parquet.py) is rewritten as these lines when it comes, so that everything after the upload knows one form.
"""

from __future__ import annotations

import base64
import binascii
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import pydantic_core
from numpy.typing import NDArray
from pydantic import Field

from dipole.errors import InvalidInput, TooLarge
from dipole.protocol import images
from dipole.protocol.schemas import MediaType
from dipole_trainer.datasets import parquet, prompts
from dipole_trainer.datasets.prompts import CheckedFile
from dipole_trainer.spec import PromptSpec

MAX_PAIR_PIXELS: Final = 2048 * 2048  # a job's resolution goes no further
MAX_LINE_BYTES = 48 * 2**20  # two images of MAX_PIXELS that hardly compress, in base64
MAX_HEAD_BYTES = 2**20  # enough of a file to tell its kind
_MAGIC_NUMBERS: Final[tuple[tuple[bytes, int, MediaType], ...]] = (
    (b"\x89PNG\r\n\x1a\n", 0, "image/png"),
    (b"\xff\xd8\xff", 0, "image/jpeg"),
    (b"WEBP", 8, "image/webp"),
)


class PairSpec(PromptSpec):
    """One line of a pairs file; the images are base64."""

    chosen: str = Field(min_length=1)
    rejected: str = Field(min_length=1)


def looks_like_pairs(head: bytes) -> bool:
    """Whether a file that begins so holds pairs: it is Parquet, or its first line has an image, however long it is."""
    if head.startswith(parquet.PARQUET_MAGIC):
        return True
    first = head.lstrip().partition(b"\n")[0]
    try:
        found = pydantic_core.from_json(first, allow_partial="trailing-strings")
    except ValueError:
        return False
    return isinstance(found, dict) and ("chosen" in found or "rejected" in found)


def check_pairs_file(source: BinaryIO, target: BinaryIO, *, field: str, max_bytes: int) -> CheckedFile:
    """Write a file to `target` as JSON lines of at most `max_bytes`, every image decoded once on the way.

    Raises InvalidInput that names the first broken row.
    """
    is_parquet = source.read(len(parquet.PARQUET_MAGIC)) == parquet.PARQUET_MAGIC
    source.seek(0)
    if is_parquet:
        with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
            shutil.copyfileobj(source, file)
            file.flush()
            with parquet.parquet_as_json_lines(Path(file.name), field=field) as lines:
                checked = _copy_checked(lines, target, field, max_bytes)
    else:
        checked = _copy_checked(source, target, field, max_bytes)
    if checked.lines == 0:
        raise InvalidInput(f"{field} holds no pairs", field=field)
    return checked


def read_pairs(source: BinaryIO, *, field: str) -> Iterator[PairSpec]:
    """The rows of a stored file, images as they are kept."""
    for number, line in prompts.numbered_lines(source, field, MAX_LINE_BYTES):
        yield prompts.parse_line(PairSpec, line, number, field)


def index_pairs(path: Path) -> dict[str, list[int]]:
    """Where the rows of each prompt begin in a stored file, prompts in the order of their first."""
    found: dict[str, list[int]] = {}
    with path.open("rb") as source:
        start = 0
        for number, line in prompts.numbered_lines(source, "pairs_file", MAX_LINE_BYTES, empty=True):
            if line.strip():
                found.setdefault(prompts.parse_line(PairSpec, line, number, "pairs_file").prompt, []).append(start)
            start += len(line)
    return found


def load_pair_images(path: Path, start: int) -> list[NDArray[np.uint8]]:
    """The images of the row that begins there: chosen, rejected; (H, W, 3) each."""
    with path.open("rb") as source:
        source.seek(start)
        row = PairSpec.model_validate_json(source.readline(MAX_LINE_BYTES + 1))
    return [
        _decode_pair_image(_decode_base64(getattr(row, side), f"pairs_file.{side}"), f"pairs_file.{side}")
        for side in ("chosen", "rejected")
    ]


def _copy_checked(source: BinaryIO, target: BinaryIO, field: str, max_bytes: int) -> CheckedFile:
    written = 0

    def check_line(number: int, line: bytes) -> None:
        nonlocal written
        written += len(line)
        if written > max_bytes:
            raise TooLarge(f"the file exceeds {max_bytes} bytes as JSON lines", field=field)
        _check_pair(prompts.parse_line(PairSpec, line, number, field), number, field)

    return prompts.copy_checked_lines(source, target, check_line, field=field, max_line_bytes=MAX_LINE_BYTES)


def _check_pair(row: PairSpec, number: int, field: str) -> None:
    for side in ("chosen", "rejected"):
        where = f"{field}[{number}].{side}"
        _decode_pair_image(_decode_base64(getattr(row, side), where), where)


def _decode_base64(text: str, where: str) -> bytes:
    if text[:8].lower().startswith(("http:", "https:", "data:", "s3:", "file:")):
        raise InvalidInput(f"{where} is a URL: nothing is fetched, send base64 of the image's bytes", field=where)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(f"{where} is not valid base64: {error}", field=where) from None


def _decode_pair_image(data: bytes, where: str) -> NDArray[np.uint8]:
    for magic, at, media_type in _MAGIC_NUMBERS:
        if data[at : at + len(magic)] == magic:
            return images.decode_image(data, media_type, max_pixels=MAX_PAIR_PIXELS, field=where)
    raise InvalidInput(f"{where} is not an image: PNG, WebP and JPEG are taken", field=where)
