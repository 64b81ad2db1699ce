"""What leaves a run: the LoRA as diffusers loads it, with a card that shows how."""

from __future__ import annotations

import json
from pathlib import Path

from dipole_trainer.lora import WEIGHTS, diffusers_lora
from dipole_trainer.spec import TrainSpec

CARD = """---
library_name: diffusers
tags: [lora, text-to-image, one-step, dipole]
---
# LoRA for `{model}`, trained with Dipole

{steps} DrPO updates of {prompts} prompts and {candidates} candidates each; rewards: {rewards}.

```python
import torch
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained({load}, safety_checker=None)
pipe.load_lora_weights(".")  # this folder
seed = torch.Generator().manual_seed(0)
image = pipe("a prompt", num_inference_steps=1, guidance_scale=0.0, generator=seed).images[0]
```
"""


def export_lora(trained: Path, folder: Path, spec: TrainSpec) -> Path:
    """Write a checkpoint's adapter into `folder` as diffusers reads it, with a README.md; returns the weights' path."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((trained / "unet_lora/adapter_config.json").read_text())
    path = folder / WEIGHTS
    path.write_bytes(diffusers_lora((trained / "unet_lora/adapter_model.safetensors").read_bytes(), config))
    rewards = ", ".join(f"{reward.name} (weight {reward.weight:g})" for reward in spec.rewards)
    name = Path(spec.model).name
    load = "dipole_trainer.generators.one_step.TINY_TURBO" if name == "tiny-turbo" else f'"path/to/{name}"'
    card = CARD.format(
        model=name,
        load=load,
        steps=spec.steps,
        prompts=spec.prompts_per_step,
        candidates=spec.candidates,
        rewards=rewards,
    )
    (folder / "README.md").write_text(card)
    return path
