"""Reads named tensors from one weight file, without unpickling anything else: a weights file must not be able to run
code.
"""

from __future__ import annotations

import pickle  # for the name of its error alone
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dipole.errors import InvalidInput

WRAPPER_KEYS = ("state_dict", "model_state_dict")


def read_weight_file(path: Path, *, field: str) -> dict[str, Tensor]:
    """A .safetensors file, or a PyTorch file of tensors by name, bare or under one of WRAPPER_KEYS. Raises
    InvalidInput.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InvalidInput(
            f"{field}: {path.name} holds more than tensors, and reading the rest could run anything: "
            "save its state_dict alone, best as .safetensors",
            field=field,
        ) from None
    except SafetensorError as error:
        raise InvalidInput(f"{field}: {path.name} is not a whole safetensors file: {error}", field=field) from None
    except (RuntimeError, EOFError, ValueError, LookupError) as error:
        raise InvalidInput(f"{field}: {path.name} is not a whole PyTorch file: {error}", field=field) from None
    for wrapper in WRAPPER_KEYS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InvalidInput(
            f"{field}: {path.name} holds no tensors by name, neither bare nor under {' or '.join(WRAPPER_KEYS)}",
            field=field,
        )
    return content
