"""What leaves a run: files that other people's tools load, a model card that shows how, and a sheet of samples.

    export/
      pytorch_lora_weights.safetensors     the adapter, for diffusers
      <model>-<method>_webui.safetensors   the adapter under kohya's names, for ComfyUI and A1111
      merged/                              the whole pipeline, with `export_merged`, and always with `tune: full`
      README.md  samples.png               the model card, and the last evaluation's samples

Written whole or not at all.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor

from dipole_trainer.checkpoints import model_card
from dipole_trainer.generators.one_step import DTYPES, OneStepGenerator
from dipole_trainer.spec import TrainSpec
from dipole_trainer.weights.lora_formats import WEIGHTS, diffusers_lora, webui_lora

ADAPTER, CONFIG = "unet_lora/adapter_model.safetensors", "unet_lora/adapter_config.json"
FULL = "unet/diffusion_pytorch_model.safetensors"
MERGED, SAMPLES = "merged", "samples.png"


def export(trained: Path, workdir: Path, spec: TrainSpec, generator: OneStepGenerator) -> list[Path]:
    """Write `workdir/export` from the checkpoint `trained` of `generator`; returns what lies in it.

    The generator gives the base's weights and the pipeline's other parts; what it has trained since is not looked at.
    """
    folder, partial = workdir / "export", workdir / ".export.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if spec.tune == "lora":
        _write_loras(trained, partial, spec, generator)
    if spec.tune == "full" or spec.export_merged:
        _write_pipeline(_trained_unet(trained, spec, generator), generator, partial / MERGED)
    sheet = _newest_sheet(workdir / "samples")
    if sheet is not None:
        shutil.copyfile(sheet, partial / SAMPLES)
    written = sorted(path.name for path in partial.iterdir())
    step = int(json.loads((trained / "training_state.json").read_text())["step"])
    card = model_card.write(spec, step=step, pipeline=generator.pipeline_class.__name__, files=written)
    (partial / "README.md").write_text(card)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    return sorted(folder.iterdir())


def _write_loras(trained: Path, folder: Path, spec: TrainSpec, generator: OneStepGenerator) -> None:
    adapter, config = (trained / ADAPTER).read_bytes(), json.loads((trained / CONFIG).read_text())
    (folder / WEIGHTS).write_bytes(diffusers_lora(adapter, config))
    name = f"{Path(spec.model).name}-{spec.method.type}"
    metadata = {"ss_output_name": name, **_base_version(generator)}
    (folder / f"{name}_webui.safetensors").write_bytes(webui_lora(adapter, config, metadata))


def _base_version(generator: OneStepGenerator) -> dict[str, str]:
    """By which A1111 knows what a LoRA fits: it takes every file with other metadata for one of SD 1, and hides it."""
    if generator.kind == "sdxl":
        return {"ss_base_model_version": "sdxl_base_v1-0"}
    if generator.unet.config.cross_attention_dim == 1024:  # SD 2's text encoder, which SD-Turbo has
        return {"ss_base_model_version": "sd_v2", "ss_v2": "True"}
    return {"ss_base_model_version": "sd_v1"}


# ---- the whole pipeline ---------------------------------------------------------------------------------------------


def _trained_unet(trained: Path, spec: TrainSpec, generator: OneStepGenerator) -> dict[str, Tensor]:
    """The trained U-Net's state_dict on the CPU, in the precision that the run computed in."""
    dtype = DTYPES[spec.precision]
    if spec.tune == "full":
        state: Mapping[str, Tensor] = load_file(trained / FULL)
    else:
        base = {
            name.replace(".base_layer.", "."): value.detach().cpu()
            for name, value in generator.unet.state_dict().items()
            if ".lora_" not in name
        }
        config = json.loads((trained / CONFIG).read_text())
        state = merge(base, load_file(trained / ADAPTER), config["lora_alpha"] / config["r"])
    return {name: value.to(dtype).contiguous() for name, value in state.items()}


def merge(base: Mapping[str, Tensor], adapter: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
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


def _write_pipeline(state: Mapping[str, Tensor], generator: OneStepGenerator, folder: Path) -> None:
    """The generator's pipeline with this U-Net, as `from_pretrained` loads it."""
    with torch.device("meta"):  # no memory and no time for weights that are replaced at once
        unet: Any = UNet2DConditionModel.from_config(generator.unet.config)  # type: ignore[no-untyped-call]
    unet.load_state_dict(state, assign=True)
    pipeline = copy.copy(generator.pipeline)
    pipeline.register_modules(unet=unet)
    pipeline.save_pretrained(str(folder), safe_serialization=True)
    _forget_paths(folder)


def _forget_paths(folder: Path) -> None:
    """Take this machine's folders out of the configs: diffusers notes where each part was loaded from."""
    for path in folder.rglob("*.json"):
        if path.name in ("model_index.json", "config.json", "scheduler_config.json"):
            config = json.loads(path.read_text())
            if config.pop("_name_or_path", None) is not None:
                path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _newest_sheet(samples: Path) -> Path | None:
    """The samples of the last evaluation."""
    found = {int(match[1]): path for path in samples.glob("*.png") if (match := re.fullmatch(r"step-(\d+)", path.stem))}
    return found[max(found)] if found else None
