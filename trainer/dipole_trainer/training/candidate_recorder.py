"""Keeps what a job ranked, step by step, for replays (datasets/recordings.py says in which form).

Each process makes entries of its groups, which are JSON and travel in the loop's own messages; one writes them.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from dipole.whole_files import replacing
from dipole_trainer.datasets import recordings
from dipole_trainer.datasets.recordings import RecordedGroup, RecordedJob, RecordedStep
from dipole_trainer.generators.one_step import DTYPES
from dipole_trainer.ranking.groups import RankedGroup
from dipole_trainer.spec import Precision, RewardSpec, TrainSpec
from dipole_trainer.storage.job_layout import CANDIDATES_FOLDER, candidates_file_name
from dipole_trainer.training.rollout import SampledGroup


class CandidateRecorder:
    """Writes below `workdir`. Latents are kept in the precision that the job computes in."""

    def __init__(self, spec: TrainSpec, workdir: Path, precision: Precision) -> None:
        self.folder, self._dtype = workdir / CANDIDATES_FOLDER, DTYPES[precision]
        facts = {name: getattr(spec, name) for name in (*recordings.MATCHED_FIELDS, "method")}
        self._facts = facts

    def remove_steps_from(self, step: int) -> None:
        """Remove this step and later ones: a run that goes on from there will have its own ranked."""
        for path in self.folder.glob("step-*.safetensors"):
            if int(path.stem.removeprefix("step-")) >= step:
                path.unlink()

    def make_entry(self, drawn: SampledGroup, ranked: RankedGroup) -> dict[str, Any]:
        """A group that was ranked, as JSON."""
        group = RecordedGroup(
            index=drawn.index, prompt=drawn.prompt, seeds=tuple(drawn.seeds), results=dict(ranked.results)
        )
        latents = safetensors.torch.save({"ranked": drawn.ranked_latents.to("cpu", self._dtype).contiguous()})
        entry = {"group": group.model_dump(mode="json"), "latents": base64.b64encode(latents).decode()}
        if drawn.images is not None:
            entry["preview"] = base64.b64encode(recordings.encode_preview(np.asarray(drawn.images))).decode()
        return entry

    def write_step(self, step: int, entries: Iterable[dict[str, Any]], rewards: Sequence[RewardSpec]) -> None:
        """Every group of a step, whole or not at all; a step that is trained again after a crash is replaced. `rewards`
        are the job's with the weights of this step.
        """
        ordered = sorted(entries, key=lambda entry: int(entry["group"]["index"]))
        tensors = {
            str(entry["group"]["index"]): safetensors.torch.load(base64.b64decode(entry["latents"]))["ranked"]
            for entry in ordered
        }
        for entry in ordered:
            if "preview" in entry:
                preview = bytearray(base64.b64decode(entry["preview"]))
                name = recordings.preview_name(int(entry["group"]["index"]))
                tensors[name] = torch.frombuffer(preview, dtype=torch.uint8)
        groups = tuple(RecordedGroup.model_validate(entry["group"]) for entry in ordered)
        job = RecordedJob(**self._facts, rewards=tuple(rewards))
        told = RecordedStep(step=step, job=job, groups=groups).model_dump_json()
        self.folder.mkdir(exist_ok=True)
        with replacing(self.folder / candidates_file_name(step)) as partial, partial.open("wb") as file:
            file.write(safetensors.torch.save(tensors, metadata={recordings.METADATA_KEY: told}))
            file.flush()
            os.fsync(file.fileno())
