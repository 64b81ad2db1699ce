"""The lines of Python that draw an image with what an export holds, as its model card shows them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dipole_trainer.spec import Precision, TrainSpec
from dipole_trainer.weights.base_models import PUBLISHED_MODELS
from dipole_trainer.weights.distillations import DISTILLED_MODELS, Distillation
from dipole_trainer.weights.lora_formats import LORA_WEIGHTS_FILE


@dataclass(frozen=True)
class PipelineUsage:
    """How a generator's pipeline is used outside: its class of diffusers, and what its call is given.

    `schedule_change` says what the base's scheduler needs to draw in one step; who loads the base has to do it too.
    """

    pipeline: str
    call: Mapping[str, Any]
    schedule_change: str | None = None
    distillation: Distillation | None = None


def base_repository(spec: TrainSpec) -> str | None:
    """The base pipeline's repository, where it has one."""
    if (distillation := DISTILLED_MODELS.get(spec.model)) is not None:
        return distillation.base
    known = PUBLISHED_MODELS.get(spec.model, spec.model)
    return known if "/" in known else None


def render_snippet(spec: TrainSpec, usage: PipelineUsage, precision: Precision, *, is_lora: bool) -> str:
    """Python that draws an image, run in the export's folder."""
    distillation = usage.distillation if is_lora else None
    imports, base = _base_expression(spec, is_lora=is_lora)
    wanted = [usage.pipeline, *_distilled_classes(distillation)]
    dtype = {"fp32": "torch.float32", "bf16": "torch.bfloat16", "fp16": "torch.float16"}[precision]
    if precision != "fp32":
        dtype += ' if device == "cuda" else torch.float32'
    call = {**usage.call, **({"height": spec.resolution, "width": spec.resolution} if spec.resolution else {})}
    arguments = ", ".join(f"{name}={value!r}" for name, value in call.items())
    lines = [
        *_import_lines([*imports, *_distilled_imports(spec, distillation)], wanted),
        "",
        'device = "cuda" if torch.cuda.is_available() else "cpu"',
        f"dtype = {dtype}",
        f"base = {base}",
        *_pipeline_lines(spec, usage, is_lora=is_lora),
        "seed = torch.Generator().manual_seed(0)",
        f'image = pipe("a prompt", generator=seed, {arguments}).images[0]',
        'image.save("image.png")',
    ]
    return "\n".join(lines)


def _pipeline_lines(spec: TrainSpec, usage: PipelineUsage, *, is_lora: bool) -> list[str]:
    """From `base` to `pipe`, with everything in it that the export adds to or needs."""
    distillation = usage.distillation if is_lora else None
    revision = f', revision="{spec.revision}"' if spec.revision and is_lora else ""
    lines, unet = [], ""
    if distillation is not None and distillation.part == "unet":
        path = _distilled_path(spec, distillation)
        read = (
            f"load_file({path})"
            if distillation.file.endswith(".safetensors")
            else f"torch.load({path}, weights_only=True)"
        )
        lines += [
            'unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(base, subfolder="unet"))',
            f"unet.load_state_dict({read})",
        ]
        unet = ", unet=unet.to(dtype)"
    lines.append(f"pipe = {usage.pipeline}.from_pretrained(base{unet}{revision}, dtype=dtype).to(device)")
    if distillation is not None:
        settings = "".join(f", {name}={value!r}" for name, value in distillation.scheduler_settings.items())
        lines.append(f"pipe.scheduler = {distillation.scheduler}.from_config(pipe.scheduler.config{settings})")
    elif usage.schedule_change is not None and is_lora:
        lines += [
            "scheduler = pipe.scheduler",
            'pipe.scheduler = type(scheduler).from_config(scheduler.config, timestep_spacing="trailing")',
        ]
    if distillation is not None and distillation.part == "lora":
        source = f'"{distillation.repository}"' if spec.model in DISTILLED_MODELS else "base"
        lines += [
            f'pipe.load_lora_weights({source}, weight_name="{distillation.file}")',
            "pipe.fuse_lora()",
            "pipe.unload_lora_weights()  # its fused weights stay",
        ]
    if is_lora:
        lines.append(f'pipe.load_lora_weights(".", weight_name="{LORA_WEIGHTS_FILE}")  # of this folder')
    return lines


def _base_expression(spec: TrainSpec, *, is_lora: bool) -> tuple[list[str], str]:
    """Imports beside those of torch and diffusers, and the expression that says what is loaded."""
    hub_id, name = base_repository(spec), Path(spec.model).name
    if not is_lora:
        return [], '"merged"  # of this folder'
    if hub_id is not None:
        return [], f'"{hub_id}"'
    if name == "tiny-turbo":
        return ["from dipole_trainer.generators.one_step import TINY_TURBO"], "TINY_TURBO"
    return ["import os"], f'os.path.join(os.environ["DIPOLE_MODELS_DIR"], {json.dumps(name, ensure_ascii=False)})'


def _distilled_classes(distillation: Distillation | None) -> list[str]:
    if distillation is None:
        return []
    return [distillation.scheduler, *(["UNet2DConditionModel"] if distillation.part == "unet" else [])]


def _distilled_imports(spec: TrainSpec, distillation: Distillation | None) -> list[str]:
    if distillation is None or distillation.part != "unet":
        return []
    reads = ["from safetensors.torch import load_file"] if distillation.file.endswith(".safetensors") else []
    return [*(["from huggingface_hub import hf_hub_download"] if spec.model in DISTILLED_MODELS else []), *reads]


def _distilled_path(spec: TrainSpec, distillation: Distillation) -> str:
    if spec.model in DISTILLED_MODELS:
        return f'hf_hub_download("{distillation.repository}", "{distillation.file}")'
    return f'os.path.join(base, "{distillation.file}")'


def _import_lines(more: list[str], classes: list[str]) -> list[str]:
    """Each on a line, the standard library first."""
    usual = ["import torch", f"from diffusers import {', '.join(sorted(classes))}"]
    if "import os" in more:
        return ["import os", "", *usual, *(line for line in more if line != "import os")]
    return [*usual, *more]
