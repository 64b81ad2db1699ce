"""A job's initial weights: what earlier jobs trained, merged into the network before anything else is made of it.

Merging is W + scale·B·A in float32, rounded once to the precision that the network is loaded in: in bf16 and fp16 the
merged network draws nearly, and in fp32 up to the last bits, what the earlier job drew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from dipole.errors import InvalidInput
from dipole_trainer.generators.trainable import check_same_shapes
from dipole_trainer.spec import GeneratorSpec
from dipole_trainer.storage import job_layout


def merge_checkpoint_of_spec(
    network: nn.Module, spec: GeneratorSpec, folder: Path | None, *, base: str | None = None
) -> str | None:
    """Merge the checkpoint that a job starts from, if any; what tells the result from others, None where the network's
    own weights do. By what went in: sums differ in their last bit from machine to machine. `base` tells the network
    apart where it is such a sum itself.
    """
    if spec.initial_checkpoint is None:
        return base
    if folder is None or not folder.is_dir():
        raise InvalidInput(
            f"model: the weights of {spec.initial_checkpoint.name}, which the job starts from, are not in its folder",
            field="model",
        )
    base = base or fingerprint_weights(network.state_dict())
    merge_initial_weights(network, folder)
    return f"{base}+{spec.initial_checkpoint.id}"


def merge_initial_weights(network: nn.Module, folder: Path) -> None:
    """Put the weights in a job's INITIAL_FOLDER in place. Raises InvalidInput where they do not fit the network."""
    state: dict[str, Tensor] = dict(network.state_dict())
    names = job_layout.initial_folders(job_layout.files_below(folder))
    if not names:
        raise InvalidInput(f"model: {folder} holds no weights of a checkpoint", field="model")
    for name in names:
        state = _merge_checkpoint(state, folder / name)
    network.load_state_dict(state)


def _merge_checkpoint(state: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    names = job_layout.files_below(folder)
    if (component := job_layout.adapted_component(names)) is not None:
        config = json.loads((folder / job_layout.adapter_config_file(component)).read_text())
        adapter = load_file(folder / job_layout.adapter_weights_file(component))
        try:
            return merge_adapter(state, adapter, config["lora_alpha"] / config["r"])
        except (KeyError, RuntimeError) as error:
            raise InvalidInput(f"model: {folder} holds a LoRA of another network: {error}", field="model") from error
    if (component := job_layout.fully_trained_component(names)) is None:
        raise InvalidInput(f"model: {folder} holds no weights of a checkpoint", field="model")
    full = load_file(folder / job_layout.full_weights_file(component))
    check_same_shapes(state, full)
    return full


def merge_adapter(base: Mapping[str, Tensor], adapter: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """W + scale·B·A for every layer that has an adapter, in float32; the others as they are.

    A is (r, in, …) and B (out, r, …): of a convolution A has its kernel and B one of 1×1.
    """
    merged = dict(base)
    for name, down in adapter.items():
        if name.endswith(".lora_A.weight"):
            layer = name.removesuffix(".lora_A.weight")
            up, weight = adapter[f"{layer}.lora_B.weight"], base[f"{layer}.weight"].float()
            merged[f"{layer}.weight"] = weight + scale * (up.flatten(1) @ down.flatten(1)).view_as(weight)
    return merged


def fingerprint_weights(state: Mapping[str, Tensor]) -> str:
    """What tells networks apart: a hash of names, shapes and first numbers."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        head = value.detach().flatten()[:64].float().cpu().numpy().tobytes()
        digest.update(f"{name}{tuple(value.shape)}".encode() + head)
    return digest.hexdigest()
