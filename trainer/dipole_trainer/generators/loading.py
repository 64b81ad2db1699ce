"""Loads a pipeline's folder: each network by itself, with every weight that it has, and then the pipeline around them.

What diffusers and transformers do with a folder that others made is a surprise at times: a weight that a file lacks is
drawn at random, a variant (`model.fp16.safetensors`) is not found, odd JSON raises whatever it comes to. All of these
are an InvalidInput here.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dipole.errors import InvalidInput
from dipole_trainer.weights import base_models

_LIBRARIES = ("diffusers", "transformers")  # whose classes a folder may name; others would be code of its own


def load_pipeline(
    pipeline_class: Any, folder: Path, dtypes: Mapping[str, torch.dtype], unused_parts: Mapping[str, Any]
) -> Any:
    """The pipeline in `folder`, without `unused_parts`; nothing is downloaded, nothing is unpickled.

    `dtypes` are by part, `default` for the others. Raises InvalidInput.
    """
    index = base_models.read_pipeline_index(folder)
    with explain_loading_errors(folder, field="model"):
        networks = {
            part: _load_network(folder / part, base_models.find_variant(folder / part, stem), named, dtypes)
            for part, named, stem in base_models.weighted_parts(index)
        }
        return pipeline_class.from_pretrained(
            str(folder), dtype=dict(dtypes), local_files_only=True, use_safetensors=True, **unused_parts, **networks
        )


def _load_network(folder: Path, variant: str | None, named: tuple[str, str], dtypes: Mapping[str, torch.dtype]) -> Any:
    library, name = named
    network_class = getattr(importlib.import_module(library), name, None) if library in _LIBRARIES else None
    if not (isinstance(network_class, type) and issubclass(network_class, nn.Module)):
        raise InvalidInput(f"model: {folder} is a {library}.{name}, which is no network known here", field="model")
    loader: Any = network_class
    network, told = loader.from_pretrained(
        str(folder),
        variant=variant or None,
        dtype=dtypes.get(folder.name, dtypes["default"]),
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
    )
    if absent := [*told["missing_keys"], *told["mismatched_keys"]]:
        raise InvalidInput(
            f"model: {folder} lacks {len(absent)} of the network's weights, such as {min(map(str, absent))}",
            field="model",
        )
    return network


@contextmanager
def explain_loading_errors(folder: Path, *, field: str) -> Iterator[None]:
    """The loaders raise anything on files that they do not expect: it becomes an InvalidInput on `field`. Memory that
    does not suffice is no fault of theirs.
    """
    try:
        yield
    except (InvalidInput, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        why = (str(error).strip().splitlines() or [""])[0][:300]
        raise InvalidInput(f"{field}: {folder} cannot be loaded: {type(error).__name__}: {why}", field=field) from error


@contextmanager
def explain_odd_values(folder: Path) -> Iterator[None]:
    """What Python raises where a config's value is of another type or size than is computed with. Errors of the device
    are RuntimeErrors, and no fault of the folder.
    """
    try:
        yield
    except InvalidInput:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {error}"[:300]
        raise InvalidInput(f"model: {folder} has configs that cannot be computed with: {why}", field="model") from error
