"""A checkpoint's adapter as the LoRA files that others load, without torch: only the names inside the file change.

PEFT writes `unet_lora/adapter_model.safetensors` with names as `down_blocks.….to_q.lora_A.weight`. A safetensors file
is an 8-byte length, a JSON header of names and offsets, and the numbers, so this rewrites the header.

- diffusers: `unet.` before each name, and the adapter's settings (rank, alpha) in the metadata.
- ComfyUI, A1111 and their kin: kohya's names, `lora_unet_down_blocks_….lora_down.weight`, and each layer's alpha.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

from dipole.errors import InvalidInput

WEIGHTS = "pytorch_lora_weights.safetensors"
_MAX_HEADER = 100 * 2**20
_SETTINGS = ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_dora", "bias", "lora_bias")
_KOHYA = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}


def diffusers_lora(adapter: bytes, config: dict[str, Any]) -> bytes:
    """The adapter file under diffusers' names. Raises InvalidInput when it is no safetensors file."""
    places, numbers = _split(adapter)
    settings = {f"unet.{name}": config[name] for name in _SETTINGS if config.get(name) is not None}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(settings, sort_keys=True)}
    return _join({f"unet.{name}": place for name, place in places.items()}, numbers, metadata)


def webui_lora(adapter: bytes, config: dict[str, Any], metadata: Mapping[str, str]) -> bytes:
    """The adapter file under kohya's names, with its alpha as a float for every layer. Raises InvalidInput."""
    places, numbers = _split(adapter)
    alpha = struct.pack("<f", config["lora_alpha"])
    named: dict[str, Any] = {}
    for name, place in places.items():
        layer, part = name.rsplit(".", 2)[0], ".".join(name.rsplit(".", 2)[1:])
        key = f"lora_unet_{layer.replace('.', '_')}"
        named[f"{key}.{_KOHYA[part]}"] = place
        if part == "lora_A.weight":
            where = [len(numbers), len(numbers) + len(alpha)]
            named[f"{key}.alpha"] = {"dtype": "F32", "shape": [], "data_offsets": where}
            numbers += alpha
    return _join(named, numbers, metadata)


def _join(named: Mapping[str, Any], numbers: bytes | bytearray, metadata: Mapping[str, str]) -> bytes:
    text = json.dumps({"__metadata__": dict(metadata), **named}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + numbers


def _split(data: bytes) -> tuple[dict[str, Any], bytearray]:
    """Where each tensor lies, by its name in the U-Net, and the numbers."""
    if len(data) < 8:
        raise InvalidInput("the checkpoint's adapter is not a safetensors file")
    (length,) = struct.unpack("<Q", data[:8])
    if length > min(_MAX_HEADER, len(data) - 8):
        raise InvalidInput("the checkpoint's adapter is not a safetensors file")
    try:
        header = json.loads(data[8 : 8 + length])
    except ValueError as error:
        raise InvalidInput("the checkpoint's adapter is not a safetensors file") from error
    header.pop("__metadata__", None)
    places = {name.removeprefix("base_model.model."): place for name, place in header.items()}
    return places, bytearray(data[8 + length :])
