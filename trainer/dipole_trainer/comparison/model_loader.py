"""Where evaluated models are loaded, one at a time. Models of one base with like adapters share a generator and φ.

A base is evaluated as the generator of a model trained on it, with its adapter switched off: one load less, and both
have the same size and precision.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dipole.errors import InvalidInput
from dipole_trainer import features, generators
from dipole_trainer.checkpoints import resume_state
from dipole_trainer.compute import gpu
from dipole_trainer.compute.micro_batches import MicroBatches
from dipole_trainer.evaluation import scoring
from dipole_trainer.features import FeatureExtractor
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.registry.model_names import ModelRef
from dipole_trainer.spec import FeaturesSpec, GeneratorSpec
from dipole_trainer.weights import feature_weights
from dipole_trainer.weights.pipelines import PipelineKind

PIXEL_SPACES = ("vit_mae", "dinov2", "clip")  # the others read latents, which only models of one kind share
PRECISIONS = ("fp32", "bf16", "fp16")


class ModelLoader:
    """The models of one evaluation. `check_models` before anything is generated, then take each with `loaded`."""

    def __init__(
        self,
        models: Sequence[ModelRef],
        spec: FeaturesSpec,
        *,
        models_dir: Path,
        device: str | None = None,
        precision: str | None = None,
    ) -> None:
        """`precision` is that of all; absent, the first trained model's own, or of bases alone the device's default."""
        if precision is not None and precision not in PRECISIONS:
            raise InvalidInput(f"--precision {precision} is none of {', '.join(PRECISIONS)}", field="precision")
        self.models, self.features, self.models_dir = models, spec, models_dir
        self.device = _check_device(device or gpu.default_device())
        self.precision = precision or next(
            (each.precision for each in models if each.precision), gpu.default_precision(self.device)
        )
        self.micro_batches = MicroBatches(
            scoring.MAX_BATCH_IMAGES
        )  # one for all models: what did not fit the first fits none
        self._spec: GeneratorSpec | None = None
        self._generator: OneStepGenerator | None = None
        self._loaded_features: FeatureExtractor | None = None
        self._base = ""  # fingerprint of the generator's base weights

    def check_models(self) -> None:
        """Load each model once. Raises InvalidInput: weights are not here, do not fit, or are of another base."""
        kinds = set()
        # the first one is then there for its evaluation
        for model in reversed(self.models):
            kinds.add(self._check_model(model))
        asked = self.features.type
        spaces = {feature_weights.PUBLISHED_SPACES[kind] for kind in kinds} if asked == "auto" else {asked}
        bases = {model.base for model in self.models} if asked == "teacher_unet" else kinds
        if len(spaces) > 1 or (len(bases) > 1 and not spaces <= {*PIXEL_SPACES}):
            raise InvalidInput(
                f"features {', '.join(sorted(spaces))} of different base models do not compare: give one that reads "
                f"images, {', '.join(PIXEL_SPACES)}",
                field="features",
            )
        self.space = spaces.pop()

    @contextmanager
    def loaded(self, model: ModelRef) -> Iterator[tuple[OneStepGenerator, FeatureExtractor]]:
        """The model's generator, as it samples inside, and φ."""
        generator, phi = self._build_model(model, self.precision)
        if model.folder is None:
            with generator.base_weights():
                yield generator, phi
            return
        resume_state.load_checkpoint(model.folder, generator)
        yield generator, phi

    def _check_model(self, model: ModelRef) -> PipelineKind:
        """Load it once; the kind of its generator."""
        wrong: InvalidInput | None = None
        for precision in self._checked_precisions(model):
            try:
                generator, _ = self._build_model(model, precision)
                if model.folder is not None:
                    resume_state.load_checkpoint(model.folder, generator, base=self._base)
                return generator.kind
            except InvalidInput as error:
                wrong = error
        assert wrong is not None
        raise InvalidInput(f"--model {model.given}: {wrong}", field=wrong.field)

    def _checked_precisions(self, model: ModelRef) -> tuple[str, ...]:
        """What to load it in to check it: a fingerprint is of base weights in the precision of the training."""
        if model.folder is None:
            return (self.precision,)
        return (model.precision,) if model.precision else tuple(dict.fromkeys([self.precision, *PRECISIONS]))

    def _build_model(self, model: ModelRef, precision: str) -> tuple[OneStepGenerator, FeatureExtractor]:
        spec = GeneratorSpec.model_validate({**self._generator_fields(model), "precision": precision})
        if self._generator is None or self._loaded_features is None or spec != self._spec:
            self._generator = self._loaded_features = self._spec = None  # or two of them need memory at once
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._generator = generators.build_generator(
                spec, models_dir=self.models_dir, device=self.device, initial=model.initial
            )
            self._base = resume_state.fingerprint_base(self._generator)
            self._loaded_features = self._build_features(self._generator)
            self._spec = spec
        return self._generator, self._loaded_features

    def _generator_fields(self, model: ModelRef) -> dict[str, Any]:
        alike = (each.generator_fields for each in self.models if each.folder and each.base == model.base)
        return model.generator_fields if model.folder else next(alike, model.generator_fields)

    def _build_features(self, generator: OneStepGenerator) -> FeatureExtractor:
        try:
            return features.build_features(self.features, generator, models_dir=self.models_dir)
        except InvalidInput as error:
            raise InvalidInput(f"{error}; or evaluate with --features latents", field=error.field) from error


def _check_device(device: str) -> str:
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        # torch asserts that it was built with CUDA
        raise InvalidInput(f"--device {device}: {str(error).splitlines()[0]}", field="device") from error
    return device
