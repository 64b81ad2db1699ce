"""Published weights that make Stable Diffusion 1.5 or SDXL draw in one step: a row for each, with its sampling.

A model is a pipeline's folder with one such file beside its model_index.json, under the name that it is published
under: over the pipeline that it was distilled from, or over another of the same class. The file replaces the U-Net, or
is a LoRA that is fused into it, and the row's scheduler takes the place of the folder's.

Settings are those of the model cards; each is compared with diffusers' own pipeline in the tests. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dipole.errors import InvalidInput


@dataclass(frozen=True)
class Distillation:
    """One file of weights, and how an image is sampled with it in one step, without guidance."""

    name: str  # of the folder that `dipole models fetch` makes, the model that a job names
    repository: str
    file: str
    base: str  # repository of the pipeline that it was distilled from
    part: Literal["unet", "lora"]  # what the file holds: a whole U-Net, or a LoRA for it
    scheduler: str  # class of diffusers, made from the base's own scheduler config
    scheduler_settings: Mapping[str, str] = field(default_factory=dict)  # that differ from the base's
    timestep: int | None = None  # where its step begins; None: where the scheduler's single step does, the last


SDXL, SD15 = "stabilityai/stable-diffusion-xl-base-1.0", "stable-diffusion-v1-5/stable-diffusion-v1-5"
HYPER_SD, LIGHTNING, DMD2 = "ByteDance/Hyper-SD", "ByteDance/SDXL-Lightning", "tianweiy/DMD2"
DISTILLATIONS = (
    Distillation("hyper-sd15-lora", HYPER_SD, "Hyper-SD15-1step-lora.safetensors", SD15, "lora", "TCDScheduler"),
    Distillation("hyper-sdxl-lora", HYPER_SD, "Hyper-SDXL-1step-lora.safetensors", SDXL, "lora", "TCDScheduler"),
    Distillation(
        "hyper-sdxl-unet", HYPER_SD, "Hyper-SDXL-1step-Unet.safetensors", SDXL, "unet", "LCMScheduler", timestep=800
    ),
    Distillation(
        "sdxl-lightning", LIGHTNING, "sdxl_lightning_1step_unet_x0.safetensors", SDXL, "unet", "EulerDiscreteScheduler",
        {"timestep_spacing": "trailing", "prediction_type": "sample"},
    ),
    Distillation("dmd2-sdxl", DMD2, "dmd2_sdxl_1step_unet_fp16.bin", SDXL, "unet", "LCMScheduler", timestep=399),
)  # fmt: skip
DISTILLED_MODELS = {each.name: each for each in DISTILLATIONS}


def find_distillation(folder: Path) -> Distillation | None:
    """The one whose file lies in a pipeline's folder. Raises InvalidInput where there are several."""
    found = [each for each in DISTILLATIONS if (folder / each.file).is_file()]
    if len(found) > 1:
        names = " and ".join(each.file for each in found)
        raise InvalidInput(
            f"model: {folder} holds {names}: leave one of them there, or make a folder for each", field="model"
        )
    return found[0] if found else None
