"""Tiny pipelines of each one-step family, used with diffusers as their model cards say, and not as we do."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import load_file

SD, SDXL = diffusers.StableDiffusionPipeline, diffusers.StableDiffusionXLPipeline
# the pipeline's class, and what its call is given
PUBLISHED: dict[str, tuple[Any, dict[str, Any]]] = {
    "sana": (
        diffusers.SanaSprintPipeline,
        {"num_inference_steps": 1, "intermediate_timesteps": None, "use_resolution_binning": False},
    ),
    "hyper-sd15-lora": (SD, {"num_inference_steps": 1, "guidance_scale": 0, "eta": 1.0}),
    "hyper-sdxl-lora": (SDXL, {"num_inference_steps": 1, "guidance_scale": 0, "eta": 1.0}),
    "hyper-sdxl-unet": (SDXL, {"num_inference_steps": 1, "guidance_scale": 0, "timesteps": [800]}),
    "sdxl-lightning": (SDXL, {"num_inference_steps": 1, "guidance_scale": 0}),
    "dmd2-sdxl": (SDXL, {"num_inference_steps": 1, "guidance_scale": 0, "timesteps": [399]}),
}


def load_published(kind: str, folder: Path) -> Any:
    """A fresh pipeline of diffusers over the tiny folder of this family."""
    parts = {}
    if kind in ("hyper-sdxl-unet", "sdxl-lightning", "dmd2-sdxl"):
        config = diffusers.UNet2DConditionModel.load_config(str(folder), subfolder="unet")
        parts["unet"] = diffusers.UNet2DConditionModel.from_config(config)
        (file,) = [path for path in folder.iterdir() if path.is_file() and path.name != "model_index.json"]
        state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
        parts["unet"].load_state_dict(state)
    pipe = PUBLISHED[kind][0].from_pretrained(str(folder), local_files_only=True, **parts)
    if kind == "hyper-sd15-lora":
        pipe.load_lora_weights(str(folder), weight_name="Hyper-SD15-1step-lora.safetensors", adapter_name="one_step")
    if kind == "hyper-sdxl-lora":
        pipe.load_lora_weights(str(folder), weight_name="Hyper-SDXL-1step-lora.safetensors", adapter_name="one_step")
    if kind.endswith("-lora"):
        pipe.scheduler = diffusers.TCDScheduler.from_config(pipe.scheduler.config)
    if kind in ("hyper-sdxl-unet", "dmd2-sdxl"):
        pipe.scheduler = diffusers.LCMScheduler.from_config(pipe.scheduler.config)
    if kind == "sdxl-lightning":
        pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(
            pipe.scheduler.config, timestep_spacing="trailing", prediction_type="sample"
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def add_lora(pipe: Any, kind: str, folder: Path) -> None:
    """Load an export's LoRA, beside the one-step LoRA where the family has one, and not fused."""
    name = "pytorch_lora_weights.safetensors"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)  # said of every second adapter
        pipe.load_lora_weights(str(folder), weight_name=name, adapter_name="trained")
    if kind.endswith("-lora"):
        pipe.set_adapters(["one_step", "trained"])


def draw_published(pipe: Any, kind: str, noise: torch.Tensor, prompt: str, output_type: str = "latent") -> Any:
    """What the pipeline makes of the noise, as its model card calls it."""
    size = {"height": 64, "width": 64} if kind == "sana" else {}
    call = {**PUBLISHED[kind][1], **size}
    return pipe(prompt, latents=noise, num_images_per_prompt=len(noise), output_type=output_type, **call).images


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference, as a part of the largest value."""
    return float((one - other).abs().max() / other.abs().max())
