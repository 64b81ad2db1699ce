"""What a file is, told by how it begins, in words for whoever sent it: the one place that knows how files begin.

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
# how it begins, and what it is; the first that fits. Text may begin with "BM" or "Rar!" too, so each asks for more
_PROMPT_COLUMNS: Final = frozenset(("prompt", "prompts", "caption", "captions"))
_BEGINNINGS: Final[tuple[tuple[re.Pattern[bytes], str], ...]] = tuple(
    (re.compile(begin, re.DOTALL), name)
    for begin, name in (
        (rb"\x89PNG\r\n\x1a\n", "a PNG image"),
        (rb"\xff\xd8\xff", "a JPEG image"),
        (rb"RIFF.{4}WEBP", "a WebP image"),
        (rb"GIF8[79]a", "a GIF image"),
        (rb"BM.{4}\0{4}", "a BMP image"),
        (rb"II\*\0|MM\0\*", "a TIFF image"),
        (rb"\xff\x0a|\0{3}\x0cJXL ", "a JPEG XL image"),
        (rb"\0.{3}ftypavi", "an AVIF image"),
        (rb"\0.{3}ftyp(he|mif1|msf1)", "a HEIC image"),
        (rb"\0.{3}ftyp", "a video"),
        (rb"PAR1", PARQUET),
        (rb"PK(\x03\x04|\x05\x06)", ZIP),
        (rb".{257}ustar[\0 ]", TAR),
        (rb"\x1f\x8b", "a gzip file"),
        (rb"BZh[1-9]1AY&SY", "a bzip2 file"),
        (rb"\xfd7zXZ\0", "an xz file"),
        (rb"\x28\xb5\x2f\xfd", "a zstd file"),
        (rb"7z\xbc\xaf\x27\x1c", "a 7z archive"),
        (rb"Rar!\x1a\x07", "a RAR archive"),
        (rb"ARROW1\0", "an Arrow file"),
        (rb"\x93NUMPY", "a numpy file"),
        (rb"SQLite format 3\0", "an SQLite database"),
        (rb"%PDF-", "a PDF document"),
        (rb"\xff\xfe\0\0|\0\0\xfe\xff", "text in UTF-32"),
        (rb"\xff\xfe|\xfe\xff", "text in UTF-16"),
        (rb"version https://git-lfs\.", "a pointer of Git LFS, whose file was not fetched (`git lfs pull` does)"),
    )
)


def recognize_file(head: bytes, filename: str = "") -> str:
    """What a file that begins so is: JSON_LINES, PLAIN_TEXT, EMPTY or another name with its article."""
    found = _recognize_beginning(head)
    if found is not None:
        return found
    if b"\0" in head[:1024]:
        # ASCII letters in UTF-16: every other byte is a NUL
        return "text in UTF-16" if 0.3 < head[:1024].count(b"\0") / len(head[:1024]) < 0.7 else "binary data"
    return _recognize_text(head.decode("utf-8", "replace").lstrip("\ufeff \t\r\n"), filename.lower())


def recognize_image(head: bytes) -> MediaType | None:
    """The media type of an image that begins so, of those that are taken."""
    return _IMAGES.get(_recognize_beginning(head) or "")


def _recognize_beginning(head: bytes) -> str | None:
    return next((name for begin, name in _BEGINNINGS if begin.match(head)), None)


def _recognize_text(text: str, filename: str) -> str:
    if not text:
        return EMPTY
    first = re.split(r"[\r\n]", text, maxsplit=1)[0].rstrip()
    if first == "{":
        return "one JSON document of several lines"
    # in a .txt file a prompt may be "[V] dog" or "{red|blue} car"
    if re.match(r'\{\s*["}]', text) or (text.startswith("{") and not filename.endswith(".txt")):
        return JSON_LINES
    # in a .txt file a prompt may begin "[[V]] dog"
    if re.match(r'\[\s*(["{\]]|\[\s*["{\[\]\d-])', text):
        return "a JSON array"
    if re.match(r"<(!doctype html|html|head|body)\b", text, re.IGNORECASE):
        return "an HTML page"
    if text.startswith("<?xml"):
        return "an XML document"
    if _is_csv(first, filename):
        return "a CSV file"
    return PLAIN_TEXT


def _is_csv(first: str, filename: str) -> bool:
    """By its name, or by a first line of columns one of which is the prompt: the first, or any where no blank stands
    after a separator, as it does in "a cat, a dog, prompt".
    """
    if filename.endswith((".csv", ".tsv")):
        return True
    names = [re.sub(r'^"(.*)"$', r"\1", cell.strip()).lower() for cell in re.split(r"[,;\t]", first)]
    return names[0] in _PROMPT_COLUMNS or (not re.search(r"[,;] ", first) and not _PROMPT_COLUMNS.isdisjoint(names))
