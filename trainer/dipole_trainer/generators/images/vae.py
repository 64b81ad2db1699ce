"""Between latents in the denoiser's units and images, through a pipeline's VAE, with its scaling, shift, mean and std.

Legend: K images, c latent channels, h, w latent size, H, W image size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dipole.errors import InvalidInput
from dipole.protocol.latents import DECODER_PARTS, fingerprint_vae


def check_scaling(config: Any) -> None:
    """Raise InvalidInput where a VAE's config has no numbers to scale latents by: its folder may hold anything."""
    factor, shift = config.get("scaling_factor"), config.get("shift_factor") or 0.0
    for name, value in (("scaling_factor", factor), ("shift_factor", shift)):
        if isinstance(value, bool) or not isinstance(value, int | float) or (name == "scaling_factor" and not value):
            raise InvalidInput(f"model: vae/config.json must have a number as {name}, not {value!r}", field="model")
    for name in ("latents_mean", "latents_std"):
        channels, values = config.get("latent_channels"), config.get(name)
        if values is not None and (not isinstance(values, Sequence) or len(values) != channels):
            raise InvalidInput(f"model: vae/config.json must have {channels} numbers as {name}", field="model")


def decode_latents(vae: Any, x: Tensor) -> Tensor:
    """Images (K, 3, H, W) in float32, about -1 to 1, not clamped; differentiable in latents x (K, c, h, w)."""
    decoded: Tensor = vae.decode(decoder_input(vae, x), return_dict=False)[0]
    return decoded.float()


def decode_pixels(vae: Any, x: Tensor) -> Tensor:
    """Images (K, 3, H, W), float32, 0 to 1 but not clamped; differentiable in x.

    One with a number that is not finite is NaN all over: a clamp would make an infinite pixel a white one.
    """
    images = decode_latents(vae, x) / 2 + 0.5
    return torch.where(finite_rows(images, x).view(-1, 1, 1, 1), images, torch.nan)


def load_tiny_decoder(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """An AutoencoderTiny, frozen, of which the decoder is used; nothing is downloaded, nothing is unpickled."""
    kind: Any = AutoencoderTiny
    tiny = kind.from_pretrained(str(folder), torch_dtype=dtype, local_files_only=True, use_safetensors=True)
    check_scaling(tiny.config)
    return tiny.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


def decoder_input(vae: Any, x: Tensor) -> Tensor:
    """Latents x (K, c, h, w) as the VAE's decoder is given them."""
    return _scale_for_vae(vae.config, x).to(vae.dtype)


def encode_to_latents(vae: Any, images: Tensor) -> Tensor:
    """Latents (K, c, h, w) in float32 of images (K, 3, H, W) from -1 to 1: the mode of the VAE's Gaussian."""
    encoded = vae.encode(images.to(vae.dtype))
    # AutoencoderTiny and AutoencoderDC have no distribution, and call the latents otherwise
    (found,) = encoded.values()
    mode = found.mode() if hasattr(found, "mode") and not isinstance(found, Tensor) else found
    return _scale_for_unet(vae.config, mode.float())


def fingerprint(vae: Any) -> str:
    """By which a reward knows that it has the same VAE, in the same precision."""
    precision = str(vae.dtype).removeprefix("torch.")
    weights = ((name, value) for name, value in vae.state_dict().items() if name.startswith(DECODER_PARTS))
    return fingerprint_vae(vae.config, precision, ((name, _bytes_of(value)) for name, value in weights))


def _bytes_of(value: Tensor) -> memoryview:
    return value.cpu().contiguous().flatten().view(torch.uint8).numpy().data


def finite_rows(*parts: Tensor) -> Tensor:
    """Of tensors (K, …), which rows have finite numbers alone in all of them: (K,), bool."""
    return torch.stack([each.flatten(1).isfinite().all(1) for each in parts]).all(0)


def _scale_for_vae(config: Any, x: Tensor) -> Tensor:
    mean, std = _latent_statistics(config, x)
    scale: float = config.scaling_factor
    return x / scale * std + mean


def _scale_for_unet(config: Any, z: Tensor) -> Tensor:
    mean, std = _latent_statistics(config, z)
    scale: float = config.scaling_factor
    return (z - mean) / std * scale


def _latent_statistics(config: Any, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """The VAE's `latents_mean` and `latents_std` as (1, c, 1, 1) where it has both, else its shift and 1."""
    values = (config.get("latents_mean"), config.get("latents_std"))
    if None in values:
        return config.get("shift_factor") or 0.0, 1.0
    mean, std = (torch.tensor(value).view(1, -1, 1, 1).to(like) for value in values)
    return mean, std


def fit_to_square(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The image (H, W, 3) at the generator's size: its central square, resized with bicubic filtering."""
    height, width = image.shape[:2]
    if (height, width) == (side, side):
        return image
    square = min(height, width)
    top, left = (height - square) // 2, (width - square) // 2
    cut = Image.fromarray(image[top : top + square, left : left + square])
    return np.asarray(cut.resize((side, side), Image.Resampling.BICUBIC))
