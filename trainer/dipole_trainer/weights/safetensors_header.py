"""The header of a safetensors file: 8 bytes of length, JSON of names and offsets, then the numbers. Without torch."""

from __future__ import annotations

import json
from typing import Any, BinaryIO

MAX_HEADER_BYTES = 100 * 2**20  # safetensors' own bound
METADATA = "__metadata__"


def read_header(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """The header, and where the numbers begin. Raises ValueError where it is none."""
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError("no safetensors file: its header would be too long")
    text = file.read(length)
    if len(text) < length:
        raise ValueError("no safetensors file: its header is cut short")
    header = json.loads(text)
    if not isinstance(header, dict):
        raise ValueError("no safetensors file: its header is no object")
    return header, 8 + length
