"""DINOv2 (arXiv 2304.07193) as an encoder of images: the state of its class token, from a checkpoint's tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from torch.nn import functional
from transformers import Dinov2Config, Dinov2Model

from dipole.errors import ConfigurationError
from dipole_rewards.networks.preprocessing import IMAGENET_STATISTICS, resize_and_crop
from dipole_rewards.networks.weight_files import DTYPES, load_exactly, read_json
from dipole_rewards.reward import Pixels
from dipole_rewards.settings import WeightSettings

SHORTEST, SIDE = 256, 224  # as its published processor has it: resized to the one, cut to the other


class Dinov2Encoder:
    """Embeddings are float32 whatever the weights are."""

    def __init__(self, network: Dinov2Model) -> None:
        self.network = network

    def embed(self, images: Sequence[Pixels]) -> Tensor:
        """K images (H, W, 3) → (K, D), of length 1."""
        pixels = [resize_and_crop(each, SIDE, shortest=SHORTEST, statistics=IMAGENET_STATISTICS) for each in images]
        batch = torch.stack(pixels).to(self.network.device, self.network.dtype)
        return functional.normalize(self.network(pixel_values=batch).pooler_output.float(), dim=-1)


def load_dinov2(
    state: Mapping[str, Tensor], settings: WeightSettings, device: str, *, weights: Path, config: Path
) -> Dinov2Encoder:
    """The network that `config.json` describes. Raises ConfigurationError where the files do not belong together."""
    try:
        shape = Dinov2Config.from_dict(read_json(config))
        network: Any = load_exactly(Dinov2Model, shape, state, DTYPES[settings.reward_dtype])
    except (RuntimeError, StrictDataclassError) as error:
        raise ConfigurationError(f"{weights} is not the DINOv2 that {config} describes: {error}") from error
    return Dinov2Encoder(network.eval().requires_grad_(False).to(device))
