"""Loads a pipeline's folder: each network by itself, with every weight that it has, and then the pipeline around them.

What diffusers and transformers do with a folder that others made is a surprise at times: a weight that a file lacks is
drawn at random, a variant (`model.fp16.safetensors`) is not found, odd JSON raises whatever it comes to. All of these
are an InvalidInput here.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dipole.errors import InvalidInput
from dipole_trainer.generators.initial_weights import fingerprint_weights
from dipole_trainer.generators.weight_files import read_weight_file
from dipole_trainer.weights import base_models
from dipole_trainer.weights.distillations import Distillation

_LIBRARIES = ("diffusers", "transformers")  # whose classes a folder may name; others would be code of its own


def load_pipeline(
    pipeline_class: Any,
    folder: Path,
    dtypes: Mapping[str, torch.dtype],
    unused_parts: Mapping[str, Any],
    distillation: Distillation | None = None,
) -> tuple[Any, str | None]:
    """The pipeline in `folder`, without `unused_parts`, its U-Net made that of `distillation`; nothing is downloaded,
    nothing is unpickled. And where a LoRA was fused into the U-Net what tells it from others, by what went in: sums
    differ in their last bit from machine to machine.

    `dtypes` are by part, `default` for the others. Raises InvalidInput.
    """
    index = base_models.read_pipeline_index(folder)
    loaded_in = {**dtypes}
    if distillation is not None and distillation.part == "lora":
        loaded_in["unet"] = torch.float32  # fused in it, and rounded once
    with explain_loading_errors(folder, field="model"):
        networks = {
            part: _load_distilled(folder, part, named, loaded_in, distillation.file)
            if distillation is not None and distillation.part == part
            else _load_network(folder / part, base_models.find_variant(folder / part, stem), named, loaded_in)
            for part, named, stem in base_models.weighted_parts(index)
        }
        pipeline = pipeline_class.from_pretrained(
            str(folder), dtype=loaded_in, local_files_only=True, use_safetensors=True, **unused_parts, **networks
        )
        fused = None
        if distillation is not None and distillation.part == "lora":
            with (folder / distillation.file).open("rb") as file:
                added = hashlib.file_digest(file, "sha256").hexdigest()
            fused = f"{fingerprint_weights(pipeline.unet.state_dict())}+{added}"
            _fuse_lora(pipeline, folder, distillation.file)
            nn.Module.to(pipeline.unet, dtypes.get("unet", dtypes["default"]))
        return pipeline, fused


def _load_network(folder: Path, variant: str | None, named: tuple[str, str], dtypes: Mapping[str, torch.dtype]) -> Any:
    network, told = find_network_class(folder, named).from_pretrained(
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


def _load_distilled(
    folder: Path, part: str, named: tuple[str, str], dtypes: Mapping[str, torch.dtype], file: str
) -> Any:
    """The network of a part's config with the weights of a file beside it."""
    network_class = find_network_class(folder / part, named)
    # no memory and no time for weights that are replaced at once
    with torch.device("meta"):
        network = network_class.from_config(network_class.load_config(str(folder / part), local_files_only=True))
    state, wanted = read_weight_file(folder / file, field="model"), network.state_dict()
    unfit = sorted(
        name
        for name in {*state, *wanted}
        if name not in state or name not in wanted or state[name].shape != wanted[name].shape
    )
    if unfit:
        raise InvalidInput(
            f"model: {file} holds another network than {folder / part} describes: {len(unfit)} of its weights do not "
            f"fit, such as {unfit[0]}",
            field="model",
        )
    network.load_state_dict(state, assign=True)
    return nn.Module.to(network, dtypes.get(part, dtypes["default"]))


def _fuse_lora(pipeline: Any, folder: Path, file: str) -> None:
    """Fuse a LoRA into the pipeline's networks, as its users do."""
    pipeline.load_lora_weights(str(folder), weight_name=file, local_files_only=True)
    if not pipeline.get_active_adapters():
        raise InvalidInput(f"model: {file} is no LoRA for the pipeline in {folder}", field="model")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()


def find_network_class(folder: Path, named: tuple[str, str]) -> Any:
    """The class that a pipeline's index names for the part in `folder`. Raises InvalidInput for an unknown one."""
    library, name = named
    network_class = getattr(importlib.import_module(library), name, None) if library in _LIBRARIES else None
    if not (isinstance(network_class, type) and issubclass(network_class, nn.Module)):
        raise InvalidInput(f"model: {folder} is a {library}.{name}, which is no network known here", field="model")
    return network_class


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
