"""What a file is, told by how it begins, in words for whoever sent it: the one place that knows magic numbers.

recognize_file(head, "prompts.csv")     "a CSV file"
recognize_image(head)                   "image/png", "image/webp", "image/jpeg", or None
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from dipole.protocol.schemas import MediaType  # pydantic, which the reader of containers needs not

HEAD_BYTES: Final = 2**20  # enough of a file to tell its kind
JSON_LINES: Final = "JSON lines"
PLAIN_TEXT: Final = "plain text"
EMPTY: Final = "empty"
PARQUET: Final = "a Parquet file"
ZIP: Final = "a zip archive"
TAR: Final = "a tar archive"

_IMAGES: Final[dict[str, MediaType]] = {
    "a PNG image": "image/png",
    "a JPEG image": "image/jpeg",
    "a WebP image": "image/webp",
}
# (where, bytes, what it is); the first that fits is it
_MAGIC_NUMBERS: Final[tuple[tuple[int, bytes, str], ...]] = (
    (0, b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (8, b"WEBP", "a WebP image"),
    (0, b"GIF8", "a GIF image"),
    (0, b"BM", "a BMP image"),
    (0, b"II*\x00", "a TIFF image"),
    (0, b"MM\x00*", "a TIFF image"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (0, b"\x00\x00\x00\x0cJXL ", "a JPEG XL image"),
    (4, b"ftypavi", "an AVIF image"),
    (4, b"ftyphe", "a HEIC image"),
    (4, b"ftypmif1", "a HEIC image"),
    (4, b"ftyp", "a video"),
    (0, b"PAR1", PARQUET),
    (0, b"PK\x03\x04", ZIP),
    (0, b"PK\x05\x06", ZIP),
    (257, b"ustar", TAR),
    (0, b"\x1f\x8b", "a gzip file"),
    (0, b"BZh", "a bzip2 file"),
    (0, b"\xfd7zXZ", "an xz file"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd file"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!", "a RAR archive"),
    (0, b"ARROW1", "an Arrow file"),
    (0, b"\x93NUMPY", "a numpy file"),
    (0, b"SQLite format 3", "an SQLite database"),
    (0, b"%PDF", "a PDF document"),
    (0, b"\xff\xfe\x00\x00", "text in UTF-32"),
    (0, b"\x00\x00\xfe\xff", "text in UTF-32"),
    (0, b"\xff\xfe", "text in UTF-16"),
    (0, b"\xfe\xff", "text in UTF-16"),
)


def recognize_file(head: bytes, filename: str = "") -> str:
    """What a file that begins so is: JSON_LINES, PLAIN_TEXT, EMPTY or another name with its article."""
    found = _recognize_magic(head)
    if found is not None:
        return found
    if b"\x00" in head[:1024]:
        # ASCII letters in UTF-16: every other byte is a NUL
        return "text in UTF-16" if 0.3 < head[:1024].count(b"\x00") / len(head[:1024]) < 0.7 else "binary data"
    text = head.decode("utf-8-sig", "replace").lstrip()
    if not text:
        return EMPTY
    first = re.split(r"[\r\n]", text, maxsplit=1)[0].rstrip()
    if first == "{":
        return "one JSON document of several lines"
    if text.startswith("{"):
        return JSON_LINES
    if text.startswith("["):
        return "a JSON array"
    if re.match(r"<(!doctype html|html|head|body)", text, re.IGNORECASE):
        return "an HTML page"
    if text.startswith("<?xml"):
        return "an XML document"
    if _is_csv(first, filename):
        return "a CSV file"
    return PLAIN_TEXT


def recognize_image(head: bytes) -> MediaType | None:
    """The media type of an image that begins so, of those that are taken."""
    return _IMAGES.get(_recognize_magic(head) or "")


def _recognize_magic(head: bytes) -> str | None:
    return next((name for at, magic, name in _MAGIC_NUMBERS if head[at : at + len(magic)] == magic), None)


def _is_csv(first: str, filename: str) -> bool:
    """By its name, or by a first line of columns one of which is the prompt."""
    if filename.lower().endswith((".csv", ".tsv")):
        return True
    return "prompt" in (cell.strip().strip('"').lower() for cell in re.split(r"[,;\t]", first))
