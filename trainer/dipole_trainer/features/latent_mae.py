"""The latent MAE's encoder: a ResNet with group norm that was trained to fill in masked Stable Diffusion latents.

Published weights are one file, `mae_latent_256_torch.pth`: tensors named `encoder.conv1.kernel`, `encoder.gn1.scale`,
`encoder.stages_i.layers_j.{conv1, gn1, conv2, gn2, proj_conv, proj_gn}`, `encoder.layerN_norm`, either with Flax's
names and layout (`kernel`, `scale`, H×W×in×out) or with PyTorch's. Widths and depths are read off the tensors. It is
convolutional: latents of any size go in as they are (512 pixels are latents of 64, whose `layer4` is 8×8).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from torch import Tensor, nn

from dipole.errors import InvalidInput
from dipole_trainer.features.keys import choose_keys
from dipole_trainer.features.pooling import MAP_POOLS, map_keys, pool_map
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.generators.weight_files import read_weight_file
from dipole_trainer.spec import FeaturesSpec
from dipole_trainer.weights import local_weights
from dipole_trainer.weights.feature_weights import LATENT_MAE_FILES, LATENT_MAE_WEIGHTS

MAX_GROUPS = 32
BLOCKS_BETWEEN = 2  # published: within a stage, every second block's output is a map to choose
_NAME_PATTERNS = (  # the file's names as this module's
    (r"^(module\.|_orig_mod\.)+", ""),
    (r"^encoder\.", ""),
    (r"stages_(\d+)\.layers_(\d+)", r"stages.\1.\2"),
    (r"^(layer\d+)_norm", r"norms.\1"),
    (r"\.(kernel|scale)$", ".weight"),
)


def make_group_norm(channels: int) -> nn.GroupNorm:
    """With the most groups, up to 32, that divide the channels."""
    groups = max(groups for groups in range(1, min(MAX_GROUPS, channels) + 1) if channels % groups == 0)
    return nn.GroupNorm(groups, channels)


class ResidualBlock(nn.Module):
    """Two convolutions beside a path that is projected where size or width change."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.gn1 = make_group_norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.gn2 = make_group_norm(width)
        self.has_projection = stride != 1 or before != width
        if self.has_projection:
            self.proj_conv = nn.Conv2d(before, width, 1, stride, bias=False)
            self.proj_gn = make_group_norm(width)

    def forward(self, x: Tensor) -> Tensor:
        moved: Tensor = self.gn2(self.conv2(self.gn1(self.conv1(x)).relu()))
        beside: Tensor = self.proj_gn(self.proj_conv(x)) if self.has_projection else x
        return (beside + moved).relu()


class LatentResNet(nn.Module):
    """Latents (K, c, h, w) to maps: `conv1`, `layerN` of each stage, `layerN_blkM` on the way."""

    def __init__(self, channels: int, stem: int, widths: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        self.channels = channels
        self.conv1 = nn.Conv2d(channels, stem, 3, padding=1, bias=False)
        self.gn1 = make_group_norm(stem)
        self.stages, self.norms = nn.ModuleList(), nn.ModuleDict()
        for number, ((before, width), depth) in enumerate(zip(pairwise([stem, *widths]), depths, strict=True), 1):
            first = ResidualBlock(before, width, 1 if number == 1 else 2)
            self.stages.append(nn.ModuleList([first, *(ResidualBlock(width, width, 1) for _ in range(depth - 1))]))
            self.norms[f"layer{number}"] = make_group_norm(width)

    def map_names(self) -> list[str]:
        names = ["conv1"]
        for name, stage in zip(self.norms, self.stages, strict=True):
            assert isinstance(stage, nn.ModuleList)
            names += [*(f"{name}_blk{number}" for number in range(BLOCKS_BETWEEN, len(stage), BLOCKS_BETWEEN)), name]
        return names

    def forward(self, x: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """The maps, as far as the last that is wanted."""
        x = self.gn1(self.conv1(x)).relu()
        found = {"conv1": x}
        for (name, norm), stage in zip(self.norms.items(), self.stages, strict=True):
            if found.keys() >= set(wanted):
                break
            assert isinstance(stage, nn.ModuleList)
            for number, block in enumerate(stage, 1):
                found[f"{name}_blk{number}"] = x = block(x)
            found[name] = x = norm(x)
        return found


class LatentMaeFeatures:
    def __init__(self, encoder: LatentResNet, wanted: Sequence[str] = ()) -> None:
        self.encoder = encoder.eval().requires_grad_(False)
        known = map_keys(encoder.map_names())
        last = encoder.map_names()[-1]
        self.keys = {
            key: known[key]
            for key in choose_keys(wanted, known, [f"{last}_{pool}" for pool in MAP_POOLS], space="latent_mae")
        }

    def __call__(self, x: Tensor, *, prompt: str, seeds: Sequence[int]) -> dict[str, Tensor]:
        if x.shape[1] != self.encoder.channels:
            raise InvalidInput(
                f"features.type: this latent MAE reads latents of {self.encoder.channels} channels, and the model's "
                f"have {x.shape[1]}: choose another feature space",
                field="features.type",
            )
        maps = self.encoder(x, {name for name, _ in self.keys.values()})
        return {key: pool_map(maps[name], pool, key=key) for key, (name, pool) in self.keys.items()}


def load_latent_mae(spec: FeaturesSpec, generator: OneStepGenerator, models_dir: Path) -> LatentMaeFeatures:
    found = local_weights.locate_weights(
        spec.weights or LATENT_MAE_WEIGHTS,
        models_dir,
        revision=spec.revision,
        field="features.weights",
        files=[LATENT_MAE_FILES],
    )
    encoder = build_from_tensors(
        read_weight_file(local_weights.matching_files(found, LATENT_MAE_FILES)[0], field="features.weights")
    )
    return LatentMaeFeatures(encoder.to(generator.device), spec.keys)


def build_from_tensors(tensors: Mapping[str, Tensor]) -> LatentResNet:
    """The encoder that these tensors describe; a decoder's in the same file are ignored. Raises InvalidInput."""
    state = {_rename_tensor(name): tensor for name, tensor in tensors.items()}
    try:
        stem = state["gn1.weight"].numel()
        places = {tuple(map(int, found.groups())) for name in state if (found := _FIRST_OF_BLOCK.fullmatch(name))}
        depths = [sum(stage == wanted for stage, _ in places) for wanted in sorted({stage for stage, _ in places})]
        widths = [state[f"stages.{stage}.0.gn1.weight"].numel() for stage in range(len(depths))]
        encoder = LatentResNet(state["conv1.weight"].numel() // (9 * stem), stem, widths, depths)
        encoder.load_state_dict({name: _to_oihw(state[name], like) for name, like in encoder.state_dict().items()})
    except KeyError as missing:
        raise InvalidInput(
            f"features.weights: these are not a latent MAE's: {missing.args[0]} is missing", field="features.weights"
        ) from None
    return encoder


_FIRST_OF_BLOCK = re.compile(r"stages\.(\d+)\.(\d+)\.conv1\.weight")


def _rename_tensor(name: str) -> str:
    for theirs, ours in _NAME_PATTERNS:
        name = re.sub(theirs, ours, name)
    return name


def _to_oihw(tensor: Tensor, like: Tensor) -> Tensor:
    """A convolution's kernel as out×in×H×W, in float32, whichever way it is stored."""
    if tensor.ndim == 4 and tensor.shape != like.shape:
        tensor = tensor.permute(3, 2, 0, 1)
    if tensor.shape != like.shape:
        raise InvalidInput(
            f"features.weights: these are not a latent MAE's: a tensor is {tuple(tensor.shape)} where the others "
            f"ask for {tuple(like.shape)}",
            field="features.weights",
        )
    return tensor.float()
