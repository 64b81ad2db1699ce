"""What leaves a run: the LoRA as diffusers loads it, with a card that shows how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline

from dipole_trainer import checkpoint
from dipole_trainer.generators import OneStepGenerator
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

pipe = StableDiffusionPipeline.from_pretrained("{model}", safety_checker=None)
pipe.load_lora_weights("export")  # this folder
image = pipe("a prompt", num_inference_steps=1, guidance_scale=0.0, generator=torch.Generator().manual_seed(0)).images[0]
```
"""


def export_lora(generator: OneStepGenerator, folder: Path, spec: TrainSpec) -> Path:
    """Write `pytorch_lora_weights.safetensors` and README.md into `folder`; returns the weights' path.

    The adapter's configuration travels in the file's metadata: without it a LoRA whose alpha differs from its rank
    would load at the wrong scale.
    """
    folder.mkdir(parents=True, exist_ok=True)
    layers = {
        name.removeprefix("base_model.model."): value for name, value in checkpoint.adapter_state(generator).items()
    }
    StableDiffusionPipeline.save_lora_weights(
        str(folder), unet_lora_layers=layers, unet_lora_adapter_metadata=_plain(generator.lora.to_dict())
    )
    rewards = ", ".join(f"{reward.name} (weight {reward.weight:g})" for reward in spec.rewards)
    card = CARD.format(
        model=spec.model, steps=spec.steps, prompts=spec.prompts_per_step, candidates=spec.candidates, rewards=rewards
    )
    (folder / "README.md").write_text(card)
    return folder / "pytorch_lora_weights.safetensors"


def _plain(value: Any) -> Any:
    """JSON has no sets."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return sorted(value) if isinstance(value, set) else value
