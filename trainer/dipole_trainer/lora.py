"""A checkpoint's adapter as a LoRA that diffusers loads, without torch: only the names inside the file change.

PEFT writes `unet_lora/adapter_model.safetensors` with names as `down_blocks.….to_q.lora_A.weight`; diffusers'
`pytorch_lora_weights.safetensors` has `unet.` before them and the adapter's settings (rank, alpha) in its metadata. A
safetensors file is an 8-byte length, a JSON header of names and offsets, and the numbers, so this rewrites the header.
"""

from __future__ import annotations

import json
import struct
from typing import Any

from dipole.errors import InvalidInput

WEIGHTS = "pytorch_lora_weights.safetensors"
_MAX_HEADER = 100 * 2**20
_SETTINGS = ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_dora", "bias", "lora_bias")


def diffusers_lora(adapter: bytes, config: dict[str, Any]) -> bytes:
    """The adapter file under diffusers' names. Raises InvalidInput when it is no safetensors file."""
    header, numbers = _split(adapter)
    metadata = {f"unet.{name}": config[name] for name in _SETTINGS if config.get(name) is not None}
    named = {
        f"unet.{name.removeprefix('base_model.model.')}": place
        for name, place in header.items()
        if name != "__metadata__"
    }
    named["__metadata__"] = {"format": "pt", "lora_adapter_metadata": json.dumps(metadata, sort_keys=True)}
    text = json.dumps(named, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + numbers


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    if len(data) < 8:
        raise InvalidInput("the checkpoint's adapter is not a safetensors file")
    (length,) = struct.unpack("<Q", data[:8])
    if length > min(_MAX_HEADER, len(data) - 8):
        raise InvalidInput("the checkpoint's adapter is not a safetensors file")
    try:
        header = json.loads(data[8 : 8 + length])
    except ValueError as error:
        raise InvalidInput("the checkpoint's adapter is not a safetensors file") from error
    return header, data[8 + length :]
