"""A pretrained vision transformer on decoded pixels as a feature space: its layers' patch tokens and class token.

Keys of every layer N, from 1: `layerN_patch_mean` and `layerN_patch_std` over the patches, and `layerN_cls`, of the
layer's output as it is, before the model's last norm. Published: those of the last layer.

Legend: K samples, n patches, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dipole.errors import InvalidInput
from dipole_trainer.features import pooling
from dipole_trainer.features.keys import choose_keys
from dipole_trainer.features.preprocessing import ImagePreprocessor
from dipole_trainer.generators import activations
from dipole_trainer.generators.loading import explain_loading_errors
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.spec import FeaturesSpec
from dipole_trainer.weights import base_models, local_weights
from dipole_trainer.weights.feature_weights import PROCESSOR_FILE, SAFETENSORS_PATTERN
from dipole_trainer.weights.json_files import read_json_object

TOKEN_STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {  # of a layer's tokens (K, 1 + n, D), the class token first
    "patch_mean": lambda tokens: pooling.token_mean(tokens[:, 1:], 1)[:, None],
    "patch_std": lambda tokens: pooling.token_std(tokens[:, 1:], 1)[:, None],
    "cls": lambda tokens: tokens[:, :1],
}


class VisionFeatures:
    def __init__(
        self,
        model: Any,
        run_model: Callable[[Tensor], object],
        preprocess: ImagePreprocessor,
        decode_pixels: Callable[[Tensor], Tensor],
        wanted: Sequence[str] = (),
        *,
        space: str,
    ) -> None:
        """`run_model` takes prepared images (K, 3, s, s); `decode_pixels` decodes latents to images from 0 to 1."""
        self.model = model.eval().requires_grad_(False)
        self._run_model, self._preprocess, self._decode_pixels = run_model, preprocess, decode_pixels
        depth: int = model.config.num_hidden_layers
        stack = next(
            name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == depth
        )
        known = {
            f"layer{layer}_{part}": (f"{stack}.{layer - 1}", part)
            for layer in range(1, depth + 1)
            for part in TOKEN_STATISTICS
        }
        published = [f"layer{depth}_{part}" for part in TOKEN_STATISTICS]
        self.keys = {key: known[key] for key in choose_keys(wanted, known, published, space=space)}

    def __call__(self, x: Tensor, *, prompt: str, seeds: Sequence[int]) -> dict[str, Tensor]:
        return self.encode_pixels(self._decode_pixels(x))

    def encode_pixels(self, pixels: Tensor) -> dict[str, Tensor]:
        """Keys of images (K, 3, H, W) from 0 to 1."""
        images = self._preprocess(pixels)
        layers = [layer for layer, _ in self.keys.values()]
        tokens = activations.capture_outputs(self.model, layers, lambda: self._run_model(images))
        return {key: TOKEN_STATISTICS[part](tokens[layer]) for key, (layer, part) in self.keys.items()}


def load_pretrained(
    model_class: Any,
    published: str,
    spec: FeaturesSpec,
    generator: OneStepGenerator,
    models_dir: Path,
    *,
    kinds: Sequence[str],
    files: str = SAFETENSORS_PATTERN,
) -> tuple[Any, ImagePreprocessor]:
    """A transformers model in float32 on the generator's device, and how its images are prepared.

    `kinds` are the `model_type`s of its config that fit. Raises InvalidInput: transformers itself would fill weights
    that a file lacks with random numbers.
    """
    folder = local_weights.locate_weights(
        spec.weights or published,
        models_dir,
        revision=spec.revision,
        field="features.weights",
        files=["config.json", PROCESSOR_FILE, files],
    )
    kind = read_json_object(folder / "config.json", field="features.weights").get("model_type")
    if kind not in kinds:
        raise InvalidInput(f"features.weights: {folder} is a {kind}, not a {kinds[0]}", field="features.weights")
    with explain_loading_errors(folder, field="features.weights"):
        model, told = model_class.from_pretrained(
            str(folder),
            variant=base_models.find_variant(folder, "model") or None,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    if absent := [*told["missing_keys"], *told["mismatched_keys"]]:
        raise InvalidInput(
            f"features.weights: {folder} lacks {len(absent)} of the model's weights, such as {min(map(str, absent))}",
            field="features.weights",
        )
    return model.to(generator.device), ImagePreprocessor.from_folder(folder, device=generator.device)
