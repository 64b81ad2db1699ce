"""Pairs files: for a prompt, an image that was chosen and one that was rejected; checked row by row, so that a broken
one is named. No torch.

    {"prompt": "a red square", "chosen": "<base64 of a PNG, WebP or JPEG>", "rejected": "…", "metadata": {"rater": 7}}

The base64 may be of the URL-safe kind, have line breaks, lack its padding, be a data: URL, or stand as `bytes` in an
object, as Hugging Face's datasets writes images.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import pydantic_core
from numpy.typing import NDArray
from pydantic import Field, field_validator

from dipole.errors import InvalidInput
from dipole.protocol import file_kinds, images
from dipole_trainer.datasets import prompts
from dipole_trainer.datasets.containers import SIDES
from dipole_trainer.datasets.lines import MAX_PAIR_LINE_BYTES, Lines, numbered_lines
from dipole_trainer.datasets.prompts import CheckedFile
from dipole_trainer.spec import PromptSpec

MAX_PAIR_PIXELS: Final = 2048 * 2048  # a job's resolution goes no further
_URL: Final = re.compile(r"\s*(https?|s3|gs|hf|ftp|file):", re.IGNORECASE)
_DATA_URL: Final = re.compile(r"\s*data:(?P<type>[^,]{0,200}),", re.IGNORECASE)
_IMAGE_PATH: Final = re.compile(
    r"[^\n]{1,4096}\.(png|jpe?g|jfif|webp|gif|bmp|tiff?|hei[cf]|avif|jxl)\s*", re.IGNORECASE
)
_STANDARD_ALPHABET: Final = str.maketrans("-_", "+/", " \t\r\n")


class PairSpec(PromptSpec):
    """One line of a pairs file; the images are base64."""

    chosen: str = Field(min_length=1)
    rejected: str = Field(min_length=1)

    @field_validator("chosen", "rejected", mode="before")
    @classmethod
    def _unwrap_image(cls, value: Any) -> Any:
        """An object of {bytes, path} is what its bytes are, or else its path."""
        if isinstance(value, dict) and value.keys() <= {"bytes", "path"}:
            return value.get("bytes") or value.get("path")
        return value


def looks_like_pairs(head: bytes) -> bool:
    """Whether JSON lines that begin so hold pairs: the first line has an image, however long it is."""
    first = re.split(rb"[\r\n]", head.removeprefix(b"\xef\xbb\xbf").lstrip(), maxsplit=1)[0]
    try:
        found = pydantic_core.from_json(first, allow_partial="trailing-strings")
    except ValueError:
        return False
    return isinstance(found, dict) and any(side in found for side in SIDES)


def check_pairs(source: Lines, target: BinaryIO, *, field: str, max_bytes: int) -> CheckedFile:
    """Copy lines of at most `max_bytes` to `target`, every image decoded once on the way.

    Raises InvalidInput that names the first broken row.
    """
    return prompts.copy_checked_lines(
        source, target, _check_pair, field=field, max_bytes=max_bytes, max_line_bytes=MAX_PAIR_LINE_BYTES
    )


def read_pairs(source: Lines, *, field: str) -> Iterator[PairSpec]:
    """The rows of a stored file, images as they are kept."""
    for number, line in numbered_lines(source, field, MAX_PAIR_LINE_BYTES):
        yield prompts.parse_line(PairSpec, line, number, field)


def index_pairs(path: Path) -> dict[str, list[int]]:
    """Where the rows of each prompt begin in a stored file, prompts in the order of their first."""
    found: dict[str, list[int]] = {}
    with path.open("rb") as source:
        start = 0
        for number, line in numbered_lines(source, "pairs_file", MAX_PAIR_LINE_BYTES, empty=True):
            if line.strip():
                found.setdefault(prompts.parse_line(PairSpec, line, number, "pairs_file").prompt, []).append(start)
            start += len(line)
    return found


def load_pair_images(path: Path, start: int) -> list[NDArray[np.uint8]]:
    """The images of the row that begins there: chosen, rejected; (H, W, 3) each."""
    with path.open("rb") as source:
        source.seek(start)
        row = PairSpec.model_validate_json(source.readline(MAX_PAIR_LINE_BYTES + 1))
    return [_decode_pair_image(getattr(row, side), f"pairs_file.{side}") for side in SIDES]


def _check_pair(line: bytes, number: int, field: str) -> bytes:
    row = prompts.parse_line(PairSpec, line, number, field)
    for side in SIDES:
        _decode_pair_image(getattr(row, side), f"{field}[{number}].{side}")
    return line


def _decode_pair_image(text: str, where: str) -> NDArray[np.uint8]:
    data = _decode_base64(text, where)
    media_type = file_kinds.recognize_image(data)
    if media_type is None:
        found = file_kinds.recognize_file(data[: file_kinds.HEAD_BYTES])
        raise InvalidInput(f"{where} is {found}: PNG, WebP and JPEG are taken", field=where)
    return images.decode_image(data, media_type, max_pixels=MAX_PAIR_PIXELS, field=where)


def _decode_base64(text: str, where: str) -> bytes:
    if _URL.match(text):
        raise InvalidInput(f"{where} is a URL: nothing is fetched, send base64 of the image's bytes", field=where)
    if _IMAGE_PATH.fullmatch(text):
        raise InvalidInput(
            f"{where} is the path of an image, {text[:200]!r}: send a zip or tar that holds the file of pairs and the "
            "images that it names, or base64 of the image's bytes",
            field=where,
        )
    if (url := _DATA_URL.match(text)) is not None:
        if not url["type"].lower().endswith(";base64"):
            raise InvalidInput(f"{where} is a data: URL without ;base64: send base64", field=where)
        text = text[url.end() :]
    text = text.translate(_STANDARD_ALPHABET)
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError as error:
        raise InvalidInput(f"{where} is not valid base64: {error}", field=where) from None
