"""Networks of the published shapes with random weights, and the same divided, for benchmarks.

Random weights cost what trained ones cost, and draw noise. `small` and `small-sdxl` divide the widths by 8 and halve
the side, so that a CPU gets through them and the networks' shares of an update stay near what they are.
"""

from __future__ import annotations

import torch
from transformers import ViTMAEConfig, ViTMAEModel

from dipole_trainer.features.latent_mae import LatentMaeFeatures
from dipole_trainer.features.preprocessing import ImagePreprocessor
from dipole_trainer.features.vision_models import VisionFeatures
from dipole_trainer.features.vit_mae import make_vit_mae_features
from dipole_trainer.generators import GENERATORS
from dipole_trainer.generators.one_step import DTYPES, OneStepGenerator
from dipole_trainer.planning.architectures import (
    PUBLISHED_PIPELINES,
    PipelineShape,
    SanaShape,
    make_latent_mae,
    make_pipeline,
)
from dipole_trainer.spec import TrainSpec

SHAPES: dict[str, PipelineShape | SanaShape] = {
    "small": PipelineShape(
        unet=(40, 80, 160, 160), heads=(1, 1, 2, 2), vae=(16, 32, 64, 64), text=(128,), text_layers=(4,), latent=32,
        groups=8,
    ),
    "small-sdxl": PipelineShape(
        unet=(40, 80, 160), heads=(1, 1, 2), vae=(16, 32, 64, 64), text=(96, 160), text_layers=(2, 4), latent=32,
        groups=8,
    ),
    **PUBLISHED_PIPELINES,
}  # fmt: skip
SMALL_MAE = (32, 64, 128, 256)


def generator(size: str, spec: TrainSpec, device: str) -> OneStepGenerator:
    """The generator of that size, its adapter disturbed: half of a fresh one's gradient is nought."""
    torch.manual_seed(0)
    with torch.device(device):
        made = make_pipeline(SHAPES[size])
    if spec.precision not in (None, "fp32"):
        made.to(dtype=DTYPES[spec.precision])
    kind = SHAPES[size].kind
    found = GENERATORS[kind](made, spec, kind=kind, device=device)
    disturb(found)
    return found


def disturb(generator: OneStepGenerator) -> None:
    """Make both halves of every adapter non-zero: with B = 0 the gradient of A is zero."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_((torch.randn(parameter.shape, generator=draw) * 0.02).to(parameter.device))


def latent_mae(size: str, device: str) -> LatentMaeFeatures:
    """The published encoder's shape, or the small one's; its published keys."""
    torch.manual_seed(0)
    return LatentMaeFeatures((make_latent_mae(SMALL_MAE) if size == "small" else make_latent_mae()).to(device))


def vit_mae(size: str, generator: OneStepGenerator) -> VisionFeatures:
    """The published encoder's shape, or one of an eighth of its width and half of its side; its published keys."""
    torch.manual_seed(0)
    small = ViTMAEConfig(hidden_size=96, num_attention_heads=2, intermediate_size=384, image_size=112)
    config = small if size.startswith("small") else ViTMAEConfig()
    model = ViTMAEModel(config).to(generator.device)
    prepare = ImagePreprocessor(config.image_size, *torch.full((2, 3, 1, 1), 0.5, device=generator.device))
    return make_vit_mae_features(model, prepare, generator, ())
