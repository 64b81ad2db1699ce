"""A sampler's models: loaded when first asked for, the last few kept, from this machine's weights and the artifacts.

A generator is built from a few fields of a job's spec, and takes the weights of one checkpoint at a time: base and
checkpoints of like jobs share one. Imports torch, so the sampler imports it with its first order.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import torch
from cachetools import LRUCache

from dipole.broker.messages import CheckpointRef
from dipole.errors import InvalidInput, NotFinite, NotFound, Overloaded
from dipole.protocol import images
from dipole.settings import SamplerSettings
from dipole_trainer import generators
from dipole_trainer.checkpoints import resume_state
from dipole_trainer.compute import gpu
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.spec import GeneratorSpec, Precision
from dipole_trainer.storage import job_layout
from dipole_trainer.storage.artifacts import ArtifactStore, check_safe_path
from dipole_trainer.weights import base_models

log = structlog.get_logger()


@dataclass
class _LoadedModel:
    generator: OneStepGenerator
    base_fingerprint: str  # fingerprint of its base weights
    # id of the checkpoint it holds; none: untrained, which draws as the base does
    checkpoint_id: str | None = None


class ModelCache:
    """For one thread. Images are PNG files."""

    def __init__(self, settings: SamplerSettings) -> None:
        self._settings = settings
        self._artifacts = ArtifactStore(settings.artifacts_url, settings.home / "work")
        self._loaded: LRUCache[tuple[str, Precision], _LoadedModel] = LRUCache(settings.sampler_models)

    def draw_images(
        self, model: Mapping[str, Any], checkpoint: CheckpointRef | None, prompt: str, seeds: list[int]
    ) -> Iterator[bytes]:
        """An image a seed, as it is drawn: alone, because its bytes must not depend on its neighbours in a batch.

        Raises InvalidInput for weights that are not here or do not fit, Overloaded where memory does not suffice.
        """
        try:
            for seed in seeds:
                yield self._draw_image(model, checkpoint, prompt, seed)
            return
        except torch.OutOfMemoryError:
            log.warning("out_of_memory", models=len(self._loaded))
        finally:
            # kept for a run's prompts; every order has its own, and they add up
            for each in self._loaded.values():
                each.generator.forget_prompts()
        self._free_memory()  # not in the except block: its traceback holds tensors
        raise Overloaded("the sampler's memory does not suffice now: ask for a smaller size", retry_after=30)

    def describe_unread(self, model: Mapping[str, Any], prompt: str) -> str | None:
        """What the text encoder of a model that has drawn did not read of the prompt, in a sentence."""
        asked = json.dumps(model, sort_keys=True)
        loaded = next((each for (found, _), each in self._loaded.items() if found == asked), None)
        cut = loaded.generator.find_cut_prompts([prompt]) if loaded else None
        return None if cut is None else str(cut)

    def _draw_image(self, model: Mapping[str, Any], checkpoint: CheckpointRef | None, prompt: str, seed: int) -> bytes:
        generator = self._load_model(model, checkpoint)
        with torch.no_grad(), generator.base_weights() if checkpoint is None else nullcontext():
            x = generator(generator.draw_noise([seed]), prompt)  # (1, c, h, w)
            try:
                return images.encode_png(generator.decode_images(x)[0])
            except NotFinite as error:
                raise InvalidInput(f"model: {error}", field="model") from error

    def _free_memory(self) -> None:
        self._loaded.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    # ---- loading ----------------------------------------------------------------------------------------------------

    def _load_model(self, model: Mapping[str, Any], checkpoint: CheckpointRef | None) -> OneStepGenerator:
        """The generator with the right weights in place."""
        asked = json.dumps(model, sort_keys=True)
        precision = model.get("precision") or self._loaded_precision(asked, checkpoint)
        precision = precision or self._default_precision(checkpoint)
        key = asked, precision
        # back in its place when nothing failed: half-loaded weights are dropped
        found = self._loaded.pop(key, None)
        if found is None:
            spec = self._check_spec({**model, "precision": precision})
            # first, or both need memory at once
            while len(self._loaded) >= self._settings.sampler_models:
                self._loaded.popitem()
            log.info("model_loading", model=spec.model)
            with self._initial_folder(spec, checkpoint) as initial:
                generator = generators.build_generator(
                    spec, models_dir=self._settings.models_dir, device=gpu.default_device(), initial=initial
                )
            if generator.schedule_change is not None:
                log.warning("scheduler_changed", model=spec.model, what=generator.schedule_change)
            found = _LoadedModel(generator, resume_state.fingerprint_base(generator))
        if checkpoint is not None and found.checkpoint_id != checkpoint["id"]:
            self._load_checkpoint(found, checkpoint)
        self._loaded[key] = found
        return found.generator

    def _loaded_precision(self, asked: str, checkpoint: CheckpointRef | None) -> Precision | None:
        """Of a checkpoint whose weights are in place; the store need not be asked again."""
        for (model, precision), loaded in self._loaded.items():
            if checkpoint is not None and (model, loaded.checkpoint_id) == (asked, checkpoint["id"]):
                return precision
        return None

    def _default_precision(self, checkpoint: CheckpointRef | None) -> Precision:
        """Of a job that names none: what its checkpoint was trained in, which may be another device's default."""
        if checkpoint is not None:
            state = check_safe_path(job_layout.job_path(checkpoint["job"], checkpoint["path"]))
            with (
                _explain_missing_checkpoint(checkpoint),
                self._artifacts.open_file(f"{state}/{job_layout.TRAINING_STATE_FILE}") as file,
            ):
                found: Precision | None = json.load(file).get("precision")
            if found is not None:
                return found
        return gpu.default_precision(gpu.default_device())

    @contextmanager
    def _initial_folder(self, spec: GeneratorSpec, checkpoint: CheckpointRef | None) -> Iterator[Path | None]:
        """Where the weights lie that the checkpoint's job started from; none for most."""
        if spec.initial_checkpoint is None or checkpoint is None:
            yield None
            return
        try:
            with self._artifacts.local_path(job_layout.job_path(checkpoint["job"], job_layout.INITIAL_FOLDER)) as found:
                yield found
        except NotFound as error:
            gone = f"the weights that {checkpoint['job']} started from are no longer there: its files were removed"
            raise InvalidInput(gone, field="model") from error

    def _check_spec(self, model: Mapping[str, Any]) -> GeneratorSpec:
        """Looks whether the weights are here too, before anything that works is given up for them."""
        spec = GeneratorSpec.from_stored(json.dumps(model))
        base_models.locate_pipeline(spec.model, self._settings.models_dir, spec.revision)
        return spec

    def _load_checkpoint(self, loaded: _LoadedModel, checkpoint: CheckpointRef) -> None:
        with (
            _explain_missing_checkpoint(checkpoint),
            self._checkpoint_folder(checkpoint, loaded.generator) as folder,
        ):
            resume_state.load_checkpoint(folder, loaded.generator, base=loaded.base_fingerprint)
        loaded.checkpoint_id = checkpoint["id"]

    @contextmanager
    def _checkpoint_folder(self, checkpoint: CheckpointRef, generator: OneStepGenerator) -> Iterator[Path]:
        """The checkpoint's folder: the artifacts' own, or a copy of what is needed for as long as it is."""
        stored = check_safe_path(job_layout.job_path(checkpoint["job"], checkpoint["path"]))
        if self._artifacts.folder is not None:
            yield self._artifacts.folder / stored
            return
        with tempfile.TemporaryDirectory(prefix="dipole-checkpoint-") as scratch:
            folder = Path(scratch) / checkpoint["path"]
            for name in resume_state.weight_files(generator):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                with self._artifacts.open_file(f"{stored}/{name}") as source, (folder / name).open("wb") as target:
                    shutil.copyfileobj(source, target)
            yield folder


@contextmanager
def _explain_missing_checkpoint(checkpoint: CheckpointRef) -> Iterator[None]:
    """Files that are not there become an InvalidInput on `model`."""
    try:
        yield
    except (NotFound, FileNotFoundError) as error:
        gone = f"{checkpoint['path']} of {checkpoint['job']} is no longer there: "
        gone += "it was pruned, or its files were removed"
        raise InvalidInput(gone, field="model") from error
