"""The published networks by their shapes, without weights: Stable Diffusion's, SANA-Sprint's, those behind features.

Everything is made on torch's current default device, `meta` for a plan. Benchmarks make the same networks with random
weights: these cost what trained ones cost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Gemma2Config,
    Gemma2Model,
    ViTMAEConfig,
    ViTMAEModel,
)

from dipole_trainer.features.latent_mae import LatentResNet
from dipole_trainer.generators.tiny_pipelines import NOISE_SCHEDULE, TOKENIZER_FOLDER
from dipole_trainer.weights.distillations import DISTILLATIONS, SD15, SDXL
from dipole_trainer.weights.pipelines import PipelineKind

CLIP_VOCABULARY, CLIP_TOKENS = 49408, 77


@dataclass(frozen=True)
class PipelineShape:
    """Widths of one Stable Diffusion. `text` are those of the text encoders, whose sum is the cross-attention's."""

    unet: tuple[int, ...]
    heads: int | tuple[int, ...]
    vae: tuple[int, ...]
    text: tuple[int, ...]
    text_layers: tuple[int, ...]
    latent: int  # side of the latents
    groups: int = 32
    vocabulary: int = CLIP_VOCABULARY
    linear_projection: bool = True

    @property
    def kind(self) -> PipelineKind:
        return "sdxl" if len(self.text) == 2 else "sd"


@dataclass(frozen=True)
class SanaShape:
    """Widths of one SANA-Sprint, as its model card's config has them; the other parts are the same in all."""

    layers: int
    heads: int  # of 32 channels each
    cross_heads: int
    cross_width: int  # of a head of the cross-attention
    kind: PipelineKind = "sana"


_WIDE_VAE = (128, 256, 512, 512)
SDXL_TURBO = PipelineShape(
    unet=(320, 640, 1280), heads=(5, 10, 20), vae=_WIDE_VAE, text=(768, 1280), text_layers=(12, 32), latent=64
)
_BASES = {
    SD15: PipelineShape(
        unet=(320, 640, 1280, 1280), heads=8, vae=_WIDE_VAE, text=(768,), text_layers=(12,), latent=64,
        linear_projection=False,
    ),
    SDXL: replace(SDXL_TURBO, latent=128),
}  # fmt: skip
PUBLISHED_PIPELINES: dict[str, PipelineShape | SanaShape] = {
    "sd-turbo": PipelineShape(
        unet=(320, 640, 1280, 1280), heads=(5, 10, 20, 20), vae=_WIDE_VAE, text=(1024,), text_layers=(23,), latent=64
    ),
    "sdxl-turbo": SDXL_TURBO,
    "sana-sprint-0.6b": SanaShape(layers=28, heads=36, cross_heads=16, cross_width=72),
    "sana-sprint-1.6b": SanaShape(layers=20, heads=70, cross_heads=20, cross_width=112),
    **{each.name: _BASES[each.base] for each in DISTILLATIONS},
}


def make_pipeline(shape: PipelineShape | SanaShape) -> Any:
    """A pipeline of the class that has such a shape."""
    if isinstance(shape, SanaShape):
        return _make_sana(shape)
    return _make_sdxl(shape) if shape.kind == "sdxl" else _make_sd(shape)


def make_latent_mae(widths: tuple[int, ...] = (256, 512, 1024, 2048)) -> LatentResNet:
    """The encoder of `mae_latent_256_torch.pth`, or one of other widths."""
    return LatentResNet(4, widths[0], widths, (3, 4, 6, 3))


# of each feature space that reads images: the published network, and the side of the images that it reads
VISION_NETWORKS: dict[str, tuple[Callable[[], Any], int]] = {
    "vit_mae": (lambda: ViTMAEModel(ViTMAEConfig()), 224),
    "dinov2": (lambda: Dinov2Model(Dinov2Config(image_size=518, patch_size=14)), 224),
    "clip": (
        lambda: CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14
            )
        ),
        224,
    ),
}


def _make_sd(shape: PipelineShape) -> Any:
    return StableDiffusionPipeline(  # type: ignore[no-untyped-call]
        vae=_make_vae(shape), unet=_make_unet(shape), tokenizer=load_tokenizer(),
        scheduler=make_scheduler(EulerDiscreteScheduler),
        text_encoder=CLIPTextModel(_make_text_config(shape, 0)), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def _make_sdxl(shape: PipelineShape) -> Any:
    unet = _make_unet(
        shape, transformer_layers_per_block=(1, 2, 10), addition_embed_type="text_time", addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=shape.text[1] + 6 * 256,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return StableDiffusionXLPipeline(  # type: ignore[no-untyped-call]
        vae=_make_vae(shape), unet=unet, tokenizer=load_tokenizer(), tokenizer_2=load_tokenizer(),
        scheduler=make_scheduler(EulerAncestralDiscreteScheduler),
        text_encoder=CLIPTextModel(_make_text_config(shape, 0)),
        text_encoder_2=CLIPTextModelWithProjection(_make_text_config(shape, 1)), add_watermarker=False,
    )  # fmt: skip


def _make_sana(shape: SanaShape) -> Any:
    width, vae = shape.heads * 32, {"attention_head_dim": 32, "latent_channels": 32}
    layers, multiscales = (2, 2, 2, 3, 3, 3), ((), (), (), (5,), (5,), (5,))
    blocks = ("ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock", "EfficientViTBlock", "EfficientViTBlock")
    transformer = SanaTransformer2DModel(  # type: ignore[no-untyped-call]
        num_layers=shape.layers, num_attention_heads=shape.heads, num_cross_attention_heads=shape.cross_heads,
        cross_attention_head_dim=shape.cross_width, cross_attention_dim=width, guidance_embeds=True,
        qk_norm="rms_norm_across_heads",
    )  # fmt: skip
    autoencoder = AutoencoderDC(  # type: ignore[no-untyped-call]
        **vae, encoder_block_types=blocks, decoder_block_types=blocks, encoder_layers_per_block=layers,
        encoder_qkv_multiscales=multiscales, decoder_qkv_multiscales=multiscales, downsample_block_type="conv",
        upsample_block_type="interpolate", scaling_factor=0.41407,
    )  # fmt: skip
    # Gemma 2 of 2B
    text = Gemma2Config(
        hidden_size=2304, intermediate_size=9216, num_hidden_layers=26, num_attention_heads=8, num_key_value_heads=4,
        head_dim=256, vocab_size=256000,
    )  # fmt: skip
    return SanaSprintPipeline(  # type: ignore[no-untyped-call]
        tokenizer=load_tokenizer(text.max_position_embeddings), text_encoder=Gemma2Model(text), vae=autoencoder,
        transformer=transformer, scheduler=make_scheduler(SCMScheduler),
    )  # fmt: skip


def _make_unet(shape: PipelineShape, **more: Any) -> Any:
    return UNet2DConditionModel(  # type: ignore[no-untyped-call]
        sample_size=shape.latent, block_out_channels=shape.unet, attention_head_dim=shape.heads,
        cross_attention_dim=sum(shape.text), use_linear_projection=shape.linear_projection,
        norm_num_groups=shape.groups, **more,
    )  # fmt: skip


def _make_vae(shape: PipelineShape) -> Any:
    levels = len(shape.vae)
    return AutoencoderKL(  # type: ignore[no-untyped-call]
        block_out_channels=shape.vae, layers_per_block=2, latent_channels=4, sample_size=8 * shape.latent,
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        norm_num_groups=shape.groups,
    )  # fmt: skip


def _make_text_config(shape: PipelineShape, which: int) -> CLIPTextConfig:
    width = shape.text[which]
    return CLIPTextConfig(
        vocab_size=shape.vocabulary, hidden_size=width, intermediate_size=4 * width, projection_dim=width,
        num_hidden_layers=shape.text_layers[which], num_attention_heads=max(1, width // 64),
        max_position_embeddings=CLIP_TOKENS, hidden_act="gelu", bos_token_id=0, eos_token_id=1,
    )  # fmt: skip


def make_scheduler(kind: Any) -> Any:
    settings = {} if kind is SCMScheduler else NOISE_SCHEDULE
    # its tables are read on the host, whatever the networks are on
    with torch.device("cpu"):
        return kind(**settings)


def load_tokenizer(length: int = CLIP_TOKENS) -> Any:
    """tiny-turbo's, of another length: what it reads costs what any text of that length costs."""
    tokenizer = CLIPTokenizer.from_pretrained(str(TOKENIZER_FOLDER), local_files_only=True)
    tokenizer.model_max_length = length
    return tokenizer
