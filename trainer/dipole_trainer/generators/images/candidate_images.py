"""Candidates' images while they are still on the device that decoded them: many pieces, and one wait for all; and
their latents as they travel to rewards that decode them.

Legend: K candidates, c latent channels, h, w latent size, H, W image size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dipole.protocol.latents import Latents
from dipole_trainer.generators.images.vae import finite_rows


@dataclass(frozen=True)
class DecodedCandidates:
    """Images, and of which candidates there are none; those are black."""

    images: Tensor  # uint8 (K, H, W, 3), RGB
    has_pixels: Tensor  # (K,), bool: its pixels are finite
    has_latents: Tensor  # (K,), bool: its latents are

    @classmethod
    def of_pixels(cls, pixels: Tensor, x: Tensor) -> DecodedCandidates:
        """Of pixels (K, 3, H, W), NaN all over where they are not finite (`decode_pixels`), and their latents x."""
        sound = finite_rows(pixels)
        scaled = (torch.where(sound.view(-1, 1, 1, 1), pixels, 0.0) * 255).round().clamp(0, 255)
        return cls(scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous(), sound, finite_rows(x))

    @classmethod
    def join(cls, parts: Sequence[DecodedCandidates]) -> DecodedCandidates:
        """Micro-batches as one."""
        return cls(
            torch.cat([part.images for part in parts]),
            torch.cat([part.has_pixels for part in parts]),
            torch.cat([part.has_latents for part in parts]),
        )


def pack_latents(z: Tensor) -> tuple[Latents, list[bool]]:
    """What a decoder is given, z (K, c, h, w), in float16, and which of them are finite in it; the others are 0. Waits
    for the device.
    """
    packed = z.half()
    sound = finite_rows(packed)
    return torch.where(sound.view(-1, 1, 1, 1), packed, 0).cpu().numpy(), sound.tolist()
