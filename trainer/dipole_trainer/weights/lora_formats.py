"""A checkpoint's adapter as the LoRA files that others load, without torch: only the names inside the file change.

PEFT writes an adapter with names as `down_blocks.….to_q.lora_A.weight`. A safetensors file
is an 8-byte length, a JSON header of names and offsets, and the numbers, so this rewrites the header.

- diffusers: the trained component before each name, `unet.`, and the adapter's settings (rank, alpha) in the metadata.
- ComfyUI, A1111 and their kin: kohya's names, `lora_unet_down_blocks_….lora_down.weight`, and each layer's alpha.

Adapters that were trained one on another become one first (`fold_adapters`), which fits the base that the first fits.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dipole.errors import InvalidInput
from dipole_trainer.weights.safetensors_header import METADATA, read_header

LORA_WEIGHTS_FILE = "pytorch_lora_weights.safetensors"
_LORA_SETTINGS = ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_dora", "bias", "lora_bias")
_KOHYA_NAMES = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}


def to_diffusers_lora(adapter: bytes, config: dict[str, Any], component: str) -> bytes:
    """The adapter file of a pipeline's `component` under diffusers' names.

    Raises InvalidInput when it is no safetensors file.
    """
    places, numbers = _split_safetensors(adapter)
    settings = {f"{component}.{name}": config[name] for name in _LORA_SETTINGS if config.get(name) is not None}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(settings, sort_keys=True)}
    return _join_safetensors({f"{component}.{name}": place for name, place in places.items()}, numbers, metadata)


def to_webui_lora(adapter: bytes, config: dict[str, Any], metadata: Mapping[str, str], component: str) -> bytes:
    """The adapter file under kohya's names, with its alpha as a float for every layer. Raises InvalidInput."""
    places, numbers = _split_safetensors(adapter)
    alpha = struct.pack("<f", config["lora_alpha"])
    named: dict[str, Any] = {}
    for name, place in places.items():
        layer, part = name.rsplit(".", 2)[0], ".".join(name.rsplit(".", 2)[1:])
        key = f"lora_{component}_{layer.replace('.', '_')}"
        named[f"{key}.{_KOHYA_NAMES[part]}"] = place
        if part == "lora_A.weight":
            where = [len(numbers), len(numbers) + len(alpha)]
            named[f"{key}.alpha"] = {"dtype": "F32", "shape": [], "data_offsets": where}
            numbers += alpha
    return _join_safetensors(named, numbers, metadata)


def fold_adapters(adapters: Sequence[tuple[bytes, dict[str, Any]]]) -> tuple[bytes, dict[str, Any]]:
    """One adapter that does what these (weights, settings) do when each is merged on the one before.

    W + s₁·B₁·A₁ + s₂·B₂·A₂ = W + [s₁·B₁, s₂·B₂]·[A₁; A₂]: its rank is the sum of theirs, its alpha its rank, and a
    layer that one of them leaves alone has zeros in its place. Raises InvalidInput where one is no safetensors file of
    float32.
    """
    if len(adapters) == 1:
        return adapters[0]
    read = [(_read_tensors(weights), config) for weights, config in adapters]
    rank = sum(config["r"] for _, config in read)
    layers = sorted({name.rsplit(".", 2)[0] for tensors, _ in read for name in tensors})
    folded: dict[str, NDArray[np.float32]] = {}
    for layer in layers:
        down, up = f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"
        like = next(tensors for tensors, _ in read if down in tensors)  # A (r, in, …) and B (out, r, …)
        parts = []
        for tensors, config in read:
            r, scale = config["r"], np.float32(config["lora_alpha"] / config["r"])
            absent = (np.zeros((r, *like[down].shape[1:]), np.float32), np.zeros_like(like[up][:, :1]).repeat(r, 1))
            parts.append((tensors[down], scale * tensors[up]) if down in tensors else absent)
        folded[down] = np.concatenate([each for each, _ in parts], 0)
        folded[up] = np.concatenate([each for _, each in parts], 1)
    modules = sorted({name for _, config in read for name in config["target_modules"]})
    config = {**read[-1][1], "r": rank, "lora_alpha": float(rank), "target_modules": modules}
    return _write_tensors(folded), config


def _read_tensors(data: bytes) -> dict[str, NDArray[np.float32]]:
    places, numbers = _split_safetensors(data)
    if odd := sorted({place["dtype"] for place in places.values()} - {"F32"}):
        raise InvalidInput(f"the checkpoint's adapter is {odd[0]}: float32 is what jobs train")
    return {
        name: np.frombuffer(numbers[slice(*place["data_offsets"])], "<f4").reshape(place["shape"])
        for name, place in places.items()
    }


def _write_tensors(tensors: Mapping[str, NDArray[np.float32]]) -> bytes:
    places, numbers = dict[str, Any](), bytearray()
    for name, value in tensors.items():
        begin = len(numbers)
        numbers += np.ascontiguousarray(value, "<f4").tobytes()
        places[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [begin, len(numbers)]}
    return _join_safetensors(places, numbers, {"format": "pt"})


def _join_safetensors(named: Mapping[str, Any], numbers: bytes | bytearray, metadata: Mapping[str, str]) -> bytes:
    text = json.dumps({METADATA: dict(metadata), **named}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + numbers


def _split_safetensors(data: bytes) -> tuple[dict[str, Any], bytearray]:
    """Where each tensor lies, by its name in the network, and the numbers."""
    try:
        header, begin = read_header(io.BytesIO(data))
    except ValueError as error:
        raise InvalidInput("the checkpoint's adapter is not a safetensors file") from error
    header.pop(METADATA, None)
    places = {name.removeprefix("base_model.model."): place for name, place in header.items()}
    return places, bytearray(data[begin:])
