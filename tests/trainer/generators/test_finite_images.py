"""Images and latents that are not finite: each is looked at after the last computation, and told with its VAE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from dipole.errors import NotFinite
from dipole_trainer.generators import tiny_pipelines
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.generators.sdxl import SdxlGenerator
from dipole_trainer.spec import GeneratorSpec

KINDS: dict[str, tuple[type[OneStepGenerator], Any]] = {
    "sd": (OneStepGenerator, tiny_pipelines.make_sd_pipeline),
    "sdxl": (SdxlGenerator, tiny_pipelines.make_sdxl_pipeline),
}
IMAGE = np.full((64, 64, 3), 200, np.uint8)


def make_generator(kind: str = "sd", precision: Any = "fp16", **of_vae: Any) -> OneStepGenerator:
    """In half precision, with a VAE whose config says these."""
    generator_class, make_pipeline = KINDS[kind]
    torch.manual_seed(0)
    pipe = make_pipeline()
    pipe.vae.register_to_config(force_upcast=False, **of_vae)
    return generator_class(pipe.to(dtype=torch.float16), GeneratorSpec(precision=precision))


@torch.no_grad()
def spoil_pixels(generator: OneStepGenerator, latents: torch.Tensor, above: int) -> None:
    """Make the decoder's last layer overflow float16 on all of these latents but the `above` faintest."""
    brightest = generator.decode_pixels(latents).sub(0.5).mul(2).abs().flatten(1).amax(1)
    scale = 65504 / brightest.sort().values[above - 1 : above + 1].mean() if above else 1e8
    for value in (generator.vae.decoder.conv_out.weight, generator.vae.decoder.conv_out.bias):
        value.copy_((value.float() * scale).clamp(-60000, 60000))


@pytest.mark.parametrize("kind", KINDS)
def test_a_vae_that_overflows_is_told_by_candidate(kind: str) -> None:
    """Those that are finite are images as ever; the others are black, with a reason that names the VAE."""
    generator = make_generator(kind)
    x = generator.draw_noise(range(4))
    spoil_pixels(generator, x, above=2)
    images, flaws = generator.decode_candidates(x)
    assert len(flaws) == 2
    assert set(flaws.values()) == {"not_finite: pixels of the VAE AutoencoderKL in float16"}
    sound = [row for row in range(4) if row not in flaws]
    assert np.array_equal(images[sound], generator.decode_images(x[sound]))
    assert not images[list(flaws)].any()
    with pytest.raises(NotFinite, match=r"2 of 4 images .* \(precision fp16, the VAE AutoencoderKL in float16"):
        generator.decode_images(x)


def test_pixels_that_are_not_finite_are_no_picture() -> None:
    """For features an infinite pixel would be a white one: all of that image is NaN, the others have their gradient."""
    generator = make_generator()
    x = generator.draw_noise(range(4)).requires_grad_()
    spoil_pixels(generator, x, above=3)
    _, flaws = generator.decode_candidates(x)
    pixels = generator.decode_pixels(x)
    (spoilt,) = flaws
    assert pixels[spoilt].isnan().all()
    sound = [row for row in range(4) if row != spoilt]
    assert pixels[sound].isfinite().all()
    (gradient,) = torch.autograd.grad(pixels[sound].mean(), x)
    assert gradient[sound].abs().amax((1, 2, 3)).min() > 0


def test_latents_that_are_not_finite_are_told_before_the_vae_is_blamed() -> None:
    generator = make_generator()
    x = generator.draw_noise(range(2))
    x[1, 0, 0, 0] = torch.inf
    _, flaws = generator.decode_candidates(x)
    assert flaws == {1: "not_finite: latents in fp16"}


def test_an_image_that_cannot_be_encoded_is_told() -> None:
    generator = make_generator()
    with torch.no_grad():
        generator.vae.encoder.conv_out.weight.fill_(60000)
    with pytest.raises(NotFinite, match=r"the VAE AutoencoderKL in float16 encodes .* \(precision fp16\)"):
        generator.encode_images([IMAGE])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vae_class", ["AutoencoderKL", "AsymmetricAutoencoderKL"])
def test_a_vae_that_says_so_is_upcast(kind: str, vae_class: str) -> None:
    """Whatever pipeline it is of, and whatever its class: in float32 there is nothing to overflow."""
    generator_class, make_pipeline = KINDS[kind]
    pipe = make_pipeline()
    if vae_class != "AutoencoderKL":
        pipe.register_modules(vae=make_asymmetric_vae())
    pipe.vae.register_to_config(force_upcast=True)
    generator = generator_class(pipe.to(dtype=torch.float16), GeneratorSpec(precision="fp16"))
    assert generator.vae.dtype == torch.float32
    x = generator.draw_noise([1])
    assert generator.decode_images(x).shape == (1, 64, 64, 3)


def make_asymmetric_vae() -> Any:
    return diffusers.AsymmetricAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, down_block_out_channels=(8, 8, 16, 16), layers_per_down_block=1,
        up_block_types=("UpDecoderBlock2D",) * 4, up_block_out_channels=(8, 8, 16, 16), layers_per_up_block=1,
        norm_num_groups=4, sample_size=64,
    )  # fmt: skip


def test_a_tiny_vae_draws_and_encodes(tmp_path: Path) -> None:
    """AutoencoderTiny has neither a distribution nor statistics, and may be a pipeline's VAE."""
    pipe = tiny_pipelines.make_sd_pipeline()
    channels = (16, 16, 16, 16)
    pipe.register_modules(
        vae=diffusers.AutoencoderTiny(encoder_block_out_channels=channels, decoder_block_out_channels=channels)
    )
    generator = OneStepGenerator(pipe, GeneratorSpec())
    x = generator.encode_images([IMAGE])
    assert x.shape == (1, 4, 8, 8)
    assert generator.decode_images(x).shape == (1, 64, 64, 3)
