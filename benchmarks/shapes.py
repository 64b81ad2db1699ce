"""Networks of the published shapes with random weights, and the same divided, for benchmarks.

Random weights cost what trained ones cost, and draw noise. `small` divides SD-Turbo's widths by 8 and halves its side,
so that U-Net : VAE decoder : latent MAE is 1 : 2.7 : 0.15 as against 1 : 3.1 : 0.18, and a CPU gets through it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from dipole_trainer.features.latent_mae import LatentMaeFeatures, LatentResNet
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.generators.sdxl import SdxlGenerator
from dipole_trainer.generators.tiny_pipelines import NOISE_SCHEDULE, TOKENIZER_FOLDER
from dipole_trainer.spec import TrainSpec


@dataclass(frozen=True)
class Shape:
    """Widths of one size. Text widths are those of the text encoders, whose sum is the cross-attention's."""

    unet: tuple[int, ...]
    heads: tuple[int, ...]
    vae: tuple[int, ...]
    mae: tuple[int, ...]
    text: tuple[int, ...]
    text_layers: tuple[int, ...]
    latent: int
    groups: int


SHAPES = {
    "small": Shape((40, 80, 160, 160), (1, 1, 2, 2), (16, 32, 64, 64), (32, 64, 128, 256), (128,), (4,), 32, 8),
    "sd-turbo": Shape(
        (320, 640, 1280, 1280), (5, 10, 20, 20), (128, 256, 512, 512), (256, 512, 1024, 2048), (1024,), (23,), 64, 32
    ),
    "sdxl-turbo": Shape(
        (320, 640, 1280), (5, 10, 20), (128, 256, 512, 512), (256, 512, 1024, 2048), (768, 1280), (12, 32), 64, 32
    ),
}


def generator(size: str, spec: TrainSpec, device: str) -> OneStepGenerator:
    """The generator of that size, its adapter disturbed: half of a fresh one's gradient is nought."""
    torch.manual_seed(0)
    with torch.device(device):
        made = sdxl(SHAPES[size]) if size.startswith("sdxl") else sd(SHAPES[size])
    if spec.precision != "fp32":
        made.to(dtype={"bf16": torch.bfloat16, "fp16": torch.float16}[spec.precision])
    kind = SdxlGenerator if size.startswith("sdxl") else OneStepGenerator
    found = kind(made, spec, kind="sdxl" if size.startswith("sdxl") else "sd", device=device)
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
    widths = SHAPES[size].mae
    return LatentMaeFeatures(LatentResNet(4, widths[0], widths, (3, 4, 6, 3)).to(device))


def sd(shape: Shape) -> Any:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel

    return StableDiffusionPipeline(  # type: ignore[no-untyped-call]
        vae=_vae(shape), unet=_unet(shape), scheduler=_scheduler(), tokenizer=_tokenizer(),
        text_encoder=CLIPTextModel(_text(shape, 0)), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def sdxl(shape: Shape) -> Any:
    from diffusers import StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    unet = _unet(
        shape, transformer_layers_per_block=(1, 2, 10), addition_embed_type="text_time", addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=shape.text[1] + 6 * 256,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return StableDiffusionXLPipeline(  # type: ignore[no-untyped-call]
        vae=_vae(shape), unet=unet, scheduler=_scheduler(), tokenizer=_tokenizer(), tokenizer_2=_tokenizer(),
        text_encoder=CLIPTextModel(_text(shape, 0)), text_encoder_2=CLIPTextModelWithProjection(_text(shape, 1)),
        add_watermarker=False,
    )  # fmt: skip


def _unet(shape: Shape, **more: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(  # type: ignore[no-untyped-call]
        sample_size=shape.latent, block_out_channels=shape.unet, attention_head_dim=shape.heads,
        cross_attention_dim=sum(shape.text), use_linear_projection=True, norm_num_groups=shape.groups, **more,
    )  # fmt: skip


def _vae(shape: Shape) -> Any:
    from diffusers import AutoencoderKL

    levels = len(shape.vae)
    return AutoencoderKL(  # type: ignore[no-untyped-call]
        block_out_channels=shape.vae, layers_per_block=2, latent_channels=4, sample_size=8 * shape.latent,
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        norm_num_groups=shape.groups,
    )  # fmt: skip


def _text(shape: Shape, which: int) -> Any:
    from transformers import CLIPTextConfig

    width = shape.text[which]
    return CLIPTextConfig(
        vocab_size=len(_tokenizer()), hidden_size=width, intermediate_size=4 * width, projection_dim=width,
        num_hidden_layers=shape.text_layers[which], num_attention_heads=max(1, width // 64),
        max_position_embeddings=77, hidden_act="gelu", bos_token_id=0, eos_token_id=1,
    )  # fmt: skip


def _tokenizer() -> Any:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(str(TOKENIZER_FOLDER))
    tokenizer.model_max_length = 77
    return tokenizer


def _scheduler() -> Any:
    from diffusers import EulerDiscreteScheduler

    return EulerDiscreteScheduler(**NOISE_SCHEDULE)  # type: ignore[no-untyped-call]
