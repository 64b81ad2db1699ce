"""Files as people have them, rewritten as JSON lines of prompts or of pairs when they come.

    JSON lines                 as they are; whatever ends their lines, with a byte order mark or without
    text named .txt            a prompt a line
    Parquet of pairs           containers.py, a process of its own
    zip or tar of pairs        the same: JSON lines, with the images that they name beside them

Everything else is refused for what it is (dipole.protocol.file_kinds). No torch.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Literal

from dipole.errors import InvalidInput
from dipole.protocol import file_kinds
from dipole_trainer.datasets import containers, pairs, prompts
from dipole_trainer.datasets.lines import Utf8Lines
from dipole_trainer.datasets.prompts import CheckedFile

UploadKind = Literal["prompts", "pairs"]
WANTED = (
    'send JSON lines in UTF-8, {"prompt": "a red square"} on each, or a .txt file with a prompt on each line; pairs as '
    "JSON lines or Parquet of prompt, chosen and rejected, or as a zip or tar of JSON lines and the images they name"
)


def check_upload(
    source: BinaryIO, target: BinaryIO, *, filename: str, field: str, max_bytes: int
) -> tuple[UploadKind, CheckedFile]:
    """Write a file to `target` as JSON lines of at most `max_bytes`, twice that for pairs: base64 takes a third more.

    Raises InvalidInput that names the first broken line, or what the file is instead.
    """
    head = source.read(file_kinds.HEAD_BYTES)
    source.seek(0)
    found = file_kinds.recognize_file(head, filename)
    kind: UploadKind = "pairs"
    if found in containers.CONTAINERS:
        checked = _check_container(source, target, field, 2 * max_bytes)
    elif found == file_kinds.JSON_LINES and pairs.looks_like_pairs(head):
        with Utf8Lines(source) as lines:
            checked = pairs.check_pairs(lines, target, field=field, max_bytes=2 * max_bytes)
    else:
        kind, check_line = "prompts", _prompt_check(found, filename, field)
        with Utf8Lines(source) as lines:
            checked = prompts.copy_checked_lines(lines, target, check_line, field=field, max_bytes=max_bytes)
    if checked.lines == 0:
        raise InvalidInput(f"{field} holds no {kind}", field=field)
    return kind, checked


def _prompt_check(found: str, filename: str, field: str) -> Callable[[bytes, int, str], bytes]:
    """How a line of such a file is checked. Raises InvalidInput where it holds no lines of prompts."""
    if found == file_kinds.JSON_LINES:
        return prompts.check_prompt_line
    if found == file_kinds.PLAIN_TEXT and filename.lower().endswith(".txt"):
        return prompts.check_text_line
    raise InvalidInput(f"{field} is {found}: {WANTED}", field=field)


def _check_container(source: BinaryIO, target: BinaryIO, field: str, max_bytes: int) -> CheckedFile:
    with tempfile.NamedTemporaryFile() as file:
        shutil.copyfileobj(source, file)
        file.flush()
        with containers.container_as_json_lines(Path(file.name), field=field) as lines:
            return pairs.check_pairs(lines, target, field=field, max_bytes=max_bytes)
