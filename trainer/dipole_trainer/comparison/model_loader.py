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
from dipole_trainer.compute.micro_batches import Chunks
from dipole_trainer.evaluation import scoring
from dipole_trainer.features import Features
from dipole_trainer.generators.one_step import Kind, OneStepGenerator
from dipole_trainer.registry.model_names import NamedModel
from dipole_trainer.spec import FeaturesSpec, TrainSpec

STAND_INS: Any = {"prompts": [{"prompt": "none"}], "rewards": [{"name": "none"}]}  # a spec wants them, no generator
READ_IMAGES = ("vit_mae", "dinov2", "clip")  # the others read latents, which only models of one kind share
PRECISIONS = ("fp32", "bf16", "fp16")


class Bench:
    """The models of one evaluation. `check` them before anything is generated, then take each with `opened`."""

    def __init__(
        self,
        models: Sequence[NamedModel],
        spec: FeaturesSpec,
        *,
        models_dir: Path,
        device: str | None = None,
        precision: str | None = None,
    ) -> None:
        """`precision` is that of all; absent, the one that the first trained model was trained in."""
        if precision is not None and precision not in PRECISIONS:
            raise InvalidInput(f"--precision {precision} is none of {', '.join(PRECISIONS)}", field="precision")
        self.models, self.features, self.models_dir = models, spec, models_dir
        self.device = _usable(device or gpu.default_device())
        self.precision = precision or next((each.precision for each in models if each.precision), "fp32")
        self.chunks = Chunks(scoring.BATCH)  # one for all models: what did not fit the first fits none
        self._spec: TrainSpec | None = None
        self._generator: OneStepGenerator | None = None
        self._phi: Features | None = None
        self._base = ""  # fingerprint of the generator's base weights

    def check(self) -> None:
        """Load each model once. Raises InvalidInput: weights are not here, do not fit, or are of another base."""
        kinds = set()
        for model in reversed(self.models):  # the first one is then there for its evaluation
            kinds.add(self._check(model))
        asked = self.features.type
        spaces = {features.PUBLISHED[kind] for kind in kinds} if asked == "auto" else {asked}
        bases = {model.base for model in self.models} if asked == "teacher_unet" else kinds
        if len(spaces) > 1 or (len(bases) > 1 and not spaces <= {*READ_IMAGES}):
            raise InvalidInput(
                f"features {', '.join(sorted(spaces))} of different base models do not compare: give one that reads "
                f"images, {', '.join(READ_IMAGES)}",
                field="features",
            )
        self.space = spaces.pop()

    @contextmanager
    def opened(self, model: NamedModel) -> Iterator[tuple[OneStepGenerator, Features]]:
        """The model's generator, as it samples inside, and φ."""
        generator, phi = self._built(model, self.precision)
        if model.folder is None:
            with generator.base():
                yield generator, phi
            return
        resume_state.load(model.folder, generator)
        yield generator, phi

    def _check(self, model: NamedModel) -> Kind:
        """Load it once; the kind of its generator."""
        wrong: InvalidInput | None = None
        for precision in self._precisions(model):
            try:
                generator, _ = self._built(model, precision)
                if model.folder is not None:
                    resume_state.load(model.folder, generator, base=self._base)
                return generator.kind
            except InvalidInput as error:
                wrong = error
        assert wrong is not None
        raise InvalidInput(f"--model {model.given}: {wrong}", field=wrong.field)

    def _precisions(self, model: NamedModel) -> tuple[str, ...]:
        """What to load it in to check it: a fingerprint is of base weights in the precision of the training."""
        if model.folder is None:
            return (self.precision,)
        return (model.precision,) if model.precision else tuple(dict.fromkeys([self.precision, *PRECISIONS]))

    def _built(self, model: NamedModel, precision: str) -> tuple[OneStepGenerator, Features]:
        spec = TrainSpec.model_validate({**self._build_of(model), "precision": precision, **STAND_INS})
        if self._generator is None or self._phi is None or spec != self._spec:
            self._generator = self._phi = self._spec = None  # or two of them need memory at once
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._generator = generators.build(spec, models_dir=self.models_dir, device=self.device)
            self._base = resume_state.fingerprint(self._generator)
            self._phi = self._space(self._generator)
            self._spec = spec
        return self._generator, self._phi

    def _build_of(self, model: NamedModel) -> dict[str, Any]:
        alike = (each.build for each in self.models if each.folder and each.base == model.base)
        return model.build if model.folder else next(alike, model.build)

    def _space(self, generator: OneStepGenerator) -> Features:
        try:
            return features.build(self.features, generator, models_dir=self.models_dir)
        except InvalidInput as error:
            raise InvalidInput(f"{error}; or evaluate with --features latents", field=error.field) from error


def _usable(device: str) -> str:
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise InvalidInput(f"--device {device}: {str(error).splitlines()[0]}", field="device") from error
    return device
