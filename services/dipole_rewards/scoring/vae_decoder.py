"""A VAE's decoder, which makes of latents the images that the trainer would: the same weights, in the same precision.

The arithmetic is that of docs/protocol.md. What says whether it is the same VAE is its fingerprint. In fp32 images
agree to one level anywhere, in bf16 on the same kind of device: others add up in another order, and round every layer.

Legend: K images, c latent channels, h, w latent size, H, W image size.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import diffusers
import numpy as np
import torch
from torch import Tensor

from dipole.errors import ConfigurationError
from dipole.protocol.latents import DECODER_PARTS, fingerprint_vae
from dipole.protocol.schemas import LatentSpace
from dipole_rewards.reward import Latents, MovableNetwork, Pixels

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
VAE_CLASSES = ("AutoencoderKL", "AutoencoderTiny")
DECODED_TOGETHER = 4  # images: a decoder takes gigabytes for more


class VaeDecoder:
    """scoring.latent_decoding.LatentDecoder over diffusers."""

    def __init__(self, vae: Any, device: str) -> None:
        # as the trainer does: float16 overflows in it, and the weights keep the rounding
        if vae.dtype == torch.float16 and vae.config.get("force_upcast"):
            vae.float()
        self._vae = vae.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
        self._device = device
        self.space = LatentSpace(
            vae=fingerprint_vae(
                vae.config,
                str(vae.dtype).removeprefix("torch."),
                (
                    (name, value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
                    for name, value in vae.state_dict().items()
                    if name.startswith(DECODER_PARTS)
                ),
            ),
            channels=vae.config.latent_channels,
            scale=2 ** (len(vae.config.block_out_channels) - 1),
        )

    def networks(self) -> Sequence[MovableNetwork]:
        return [self._vae]

    @classmethod
    def load(cls, folder: Path, precision: str, device: str) -> Self:
        """Of the VAE in `folder`, or in its `vae`; nothing is downloaded, nothing is unpickled. Raises
        ConfigurationError.
        """
        found = folder / "vae" if (folder / "vae").is_dir() else folder
        try:
            kind = json.loads((found / "config.json").read_text(encoding="utf-8"))["_class_name"]
            if kind not in VAE_CLASSES:
                raise ValueError(f"its class is {kind!r:.80}, not one of {', '.join(VAE_CLASSES)}")
            dtype = DTYPES[_default_precision(device) if precision == "auto" else precision]
            vae = getattr(diffusers, kind).from_pretrained(
                str(found), torch_dtype=dtype, local_files_only=True, use_safetensors=True
            )
            return cls(vae, device)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConfigurationError(
                f"DIPOLE_REWARD_VAE={str(folder)!r}: {found} holds no VAE in diffusers' format: {why}"
            ) from error

    @torch.no_grad()
    def decode(self, latents: Sequence[Latents]) -> tuple[list[Pixels], list[int]]:
        """LatentDecoder's. Waits for the device once a size, which is once for the groups of a trainer."""
        images: list[Pixels] = []
        flawed: list[int] = []
        for _, same in itertools.groupby(latents, lambda each: each.shape):
            here = list(same)
            starts = range(0, len(here), DECODED_TOGETHER)
            parts = [self._decode_together(here[start : start + DECODED_TOGETHER]) for start in starts]
            levels, sound = (torch.cat(each).cpu() for each in zip(*parts, strict=True))
            flawed += [len(images) + place for place, fine in enumerate(sound.tolist()) if not fine]
            images += list(levels.numpy())
        return images, flawed

    def _decode_together(self, latents: Sequence[Latents]) -> tuple[Tensor, Tensor]:
        """uint8 (K, H, W, 3), and which of them are finite (K,), on the device."""
        z = torch.from_numpy(np.stack(latents)).to(self._device, self._vae.dtype)
        decoded: Tensor = self._vae.decode(z, return_dict=False)[0]
        pixels = decoded.float() / 2 + 0.5
        sound = pixels.flatten(1).isfinite().all(1) & z.flatten(1).isfinite().all(1)
        levels = (torch.where(sound.view(-1, 1, 1, 1), pixels, 0.0) * 255).round().clamp(0, 255).to(torch.uint8)
        return levels.permute(0, 2, 3, 1).contiguous(), sound


def _default_precision(device: str) -> str:
    """What a job computes in on such a device where it does not say."""
    if not device.startswith("cuda"):
        return "fp32"
    with torch.cuda.device(device):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
