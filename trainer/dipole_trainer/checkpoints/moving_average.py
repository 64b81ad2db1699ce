"""The exponential moving average of what is trained: kept beside it, in checkpoints, and exported on its own.

diffusers' EMAModel averages; every process of a run has the same. Training never sees it.

    checkpoint-N/ema/           the average, laid out as the trained weights beside it
    training_state.json         `ema_updates`, how many it has taken
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from diffusers.training_utils import EMAModel
from torch import Tensor

from dipole_trainer.checkpoints.resume_state import read_weights, write_weights
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.spec import EmaSpec
from dipole_trainer.storage import job_layout


class MovingAverage:
    """Of one generator's trained weights, which it is made at the start of."""

    def __init__(self, spec: EmaSpec, generator: OneStepGenerator) -> None:
        self.generator = generator
        self._model = EMAModel(generator.parameters(), decay=spec.decay, foreach=True)

    @property
    def updates(self) -> int:
        """How many it has taken: its decay rises with them, up to the spec's."""
        return self._model.optimization_step

    @updates.setter
    def updates(self, count: int) -> None:
        self._model.optimization_step = count

    @property
    def tensors(self) -> Sequence[Tensor]:
        """The average, in the order of the generator's parameters."""
        averaged: list[Tensor] = self._model.shadow_params
        return averaged

    def add_update(self) -> None:
        """Take the weights as they are after an update."""
        self._model.step(self.generator.parameters())

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the generator has the average; after it the weights that it had, to the last bit."""
        self._model.store(self.generator.parameters())
        self._model.copy_to(self.generator.parameters())
        try:
            yield
        finally:
            self._model.restore(self.generator.parameters())

    def save(self, checkpoint: Path) -> None:
        with self.in_place():
            write_weights(checkpoint / job_layout.EMA_FOLDER, self.generator)

    def load(self, checkpoint: Path, updates: int) -> None:
        """What `save` wrote. A checkpoint of a job that had no average yet begins one from its weights."""
        folder = checkpoint / job_layout.EMA_FOLDER
        self._model.store(self.generator.parameters())
        read_weights(folder if folder.is_dir() else checkpoint, self.generator)
        for averaged, value in zip(self.tensors, self.generator.parameters(), strict=True):
            averaged.copy_(value.detach())
        self._model.restore(self.generator.parameters())
        self.updates = updates
