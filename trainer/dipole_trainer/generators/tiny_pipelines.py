"""Tiny pipelines of the real classes with random weights: SD-Turbo, SDXL-Turbo and SANA-Sprint in a few megabytes and
seconds, and distilled ones over the first two.

For tests and for trying out a set-up without the real weights; what they draw is noise. Images are 64×64, latents 8×8.
`scripts/tiny-pipelines` writes them into folders that DIPOLE_MODELS_DIR may hold.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
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
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
)

from dipole_trainer.weights.distillations import DISTILLED_MODELS, SD15, Distillation

TOKENIZER_FOLDER = Path(__file__).parents[1] / "tiny_turbo/tokenizer"
NOISE_SCHEDULE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "timestep_spacing": "trailing",
    "prediction_type": "epsilon", "steps_offset": 1,
}  # fmt: skip


def write_pipeline(folder: Path, kind: str, *, seed: int = 0) -> Path:
    """Write the pipeline `kind` to `folder`, in diffusers format: one of KINDS, or the name of a distillation, whose
    file lies beside the pipeline that it is of. Returns `folder`.
    """
    distillation = DISTILLED_MODELS.get(kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = KINDS[_base_kind(distillation) if distillation else kind]()
        pipeline.save_pretrained(str(folder), safe_serialization=True)
        if distillation is not None:
            _write_distilled(folder, pipeline.unet, distillation)
    return folder


def _base_kind(distillation: Distillation) -> str:
    return "sd" if distillation.base == SD15 else "sdxl"


def _write_distilled(folder: Path, unet: Any, distillation: Distillation) -> None:
    """Weights under the published file's name: a LoRA of random numbers, or another U-Net of the same shape."""
    if distillation.part == "lora":
        unet.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v", "conv1"], init_lora_weights=False))
        adapter = get_peft_model_state_dict(unet)
        save_file({f"unet.{name}": value.contiguous() for name, value in adapter.items()}, folder / distillation.file)
        return
    state = type(unet).from_config(unet.config).state_dict()
    if distillation.file.endswith(".safetensors"):
        save_file(state, folder / distillation.file)
    else:
        torch.save(state, folder / distillation.file)


def make_sd_pipeline() -> Any:
    """SD-Turbo's shape: one text encoder whose last state is used, attention in all but the last block."""
    return StableDiffusionPipeline(  # type: ignore[no-untyped-call]
        vae=_make_vae(),
        text_encoder=CLIPTextModel(_make_text_config(32)),
        tokenizer=_load_tokenizer(),
        unet=_make_unet(
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
        ),
        scheduler=EulerDiscreteScheduler(**NOISE_SCHEDULE),  # type: ignore[no-untyped-call]
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def make_sdxl_pipeline() -> Any:
    """SDXL-Turbo's shape: two text encoders, a pooled embedding and the image's size as added conditions."""
    projected = 24
    return StableDiffusionXLPipeline(  # type: ignore[no-untyped-call]
        vae=_make_vae(scaling_factor=0.13025),
        text_encoder=CLIPTextModel(_make_text_config(32)),
        text_encoder_2=CLIPTextModelWithProjection(_make_text_config(16, projection_dim=projected)),
        tokenizer=_load_tokenizer(),
        tokenizer_2=_load_tokenizer(),
        unet=_make_unet(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            cross_attention_dim=32 + 16,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=projected + 6 * 8,
        ),
        scheduler=EulerAncestralDiscreteScheduler(**NOISE_SCHEDULE),  # type: ignore[no-untyped-call]
        add_watermarker=False,
    )


def make_sana_pipeline() -> Any:
    """SANA-Sprint's shape: Gemma 2, a transformer that is told its guidance scale, a deep compression autoencoder."""
    tokenizer, width = _make_gemma_tokenizer(), 32
    text = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    channels = (8, 8, 16, 16)
    return SanaSprintPipeline(  # type: ignore[no-untyped-call]
        tokenizer=tokenizer,
        text_encoder=Gemma2Model(text),
        vae=AutoencoderDC(  # type: ignore[no-untyped-call]
            latent_channels=8, attention_head_dim=8, scaling_factor=0.41407,
            encoder_block_types=("ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=channels, decoder_block_out_channels=channels,
            encoder_layers_per_block=(1,) * 4, decoder_layers_per_block=(1,) * 4,
            encoder_qkv_multiscales=((), (), (), (5,)), decoder_qkv_multiscales=((), (), (), (5,)),
        ),
        transformer=SanaTransformer2DModel(  # type: ignore[no-untyped-call]
            in_channels=8, out_channels=8, num_attention_heads=4, attention_head_dim=8, num_layers=2,
            num_cross_attention_heads=2, cross_attention_head_dim=16, cross_attention_dim=32, caption_channels=width,
            sample_size=8, guidance_embeds=True, qk_norm="rms_norm_across_heads",
        ),
        scheduler=SCMScheduler(),  # type: ignore[no-untyped-call]
    )  # fmt: skip


def _make_gemma_tokenizer() -> Any:
    """Gemma's kind of tokenizer, with letters and bytes alone for its vocabulary."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    letters = [chr(code) for code in range(33, 127)]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters]
    return GemmaTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[], add_bos_token=True)


def _make_unet(**shape: Any) -> Any:
    return UNet2DConditionModel(  # type: ignore[no-untyped-call]
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(32, 64),
        norm_num_groups=8,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        **shape,
    )


def _make_vae(scaling_factor: float = 0.18215) -> Any:
    return AutoencoderKL(  # type: ignore[no-untyped-call]
        block_out_channels=(8, 8, 16, 16),  # four levels, between which the image is halved three times
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=64,
        scaling_factor=scaling_factor,
    )


def _make_text_config(width: int, **more: Any) -> CLIPTextConfig:
    tokenizer = _load_tokenizer()
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **more,
    )


def _load_tokenizer() -> Any:
    """tiny-turbo's: CLIP's tokenizer, with the vocabulary of its own small world."""
    return CLIPTokenizer.from_pretrained(str(TOKENIZER_FOLDER), local_files_only=True)


KINDS: dict[str, Callable[[], Any]] = {
    "sd": make_sd_pipeline,
    "sdxl": make_sdxl_pipeline,
    "sana": make_sana_pipeline,
}
