"""A job that starts from what another one trained: which checkpoint its `model` names, and a copy of it for the job.

The copy is made when the job is created: the earlier job may prune its checkpoint while this one waits, or its files
may be removed, and whoever samples from this job's checkpoints needs what they stand on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dipole.errors import InvalidInput, NotFound
from dipole_trainer.api.dependencies import ApiState
from dipole_trainer.registry.model_names import checkpoint_name, find_checkpoint
from dipole_trainer.spec import InitialCheckpoint, TrainSpec
from dipole_trainer.storage import job_layout
from dipole_trainer.storage.artifacts import ArtifactStore


@dataclass(frozen=True)
class InitialWeights:
    """A checkpoint to start from: what a spec says of it, and the store's folders of what is merged, in order."""

    checkpoint: InitialCheckpoint
    model: str  # the base of all of them
    revision: str | None
    resolution: int | None
    folders: list[str]

    def spec_values(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of a spec that follow from it, beside those that the caller has `given`."""
        if given.get("revision") not in (None, self.revision):
            raise InvalidInput(
                f"revision: {self.checkpoint.name} is of revision {self.revision or 'none'} of its base: leave it out",
                field="revision",
            )
        size = {} if given.get("resolution") else {"resolution": self.resolution}
        return {**size, "model": self.model, "revision": self.revision, "initial_checkpoint": self.checkpoint}

    def copy_to(self, artifacts: ArtifactStore, job_id: str) -> None:
        """Copy it below the job's folder, whole or not at all. Raises InvalidInput where it was pruned."""
        initial = job_layout.job_path(job_id, job_layout.INITIAL_FOLDER)
        try:
            for index, folder in enumerate(self.folders):
                names = job_layout.weight_files(each.path for each in artifacts.list_files(folder))
                if not names:
                    raise NotFound("there is no such file")
                for name in names:
                    artifacts.copy_file(f"{folder}/{name}", f"{initial}/{index}/{name}")
        except Exception as error:
            artifacts.delete_folder(job_layout.job_path(job_id))
            if isinstance(error, NotFound):
                gone = f"model: the files of {self.checkpoint.name} are gone: it was pruned, or they were removed"
                raise InvalidInput(gone, field="model") from error
            raise


def find_initial_weights(state: ApiState, model: str) -> InitialWeights | None:
    """The checkpoint that a request's `model` names; None for a base. Raises InvalidInput on `model`."""
    if not model.startswith(("ft:", "ftckpt-")):
        return None
    row, job = find_checkpoint(model, state.database)
    checkpoint = InitialCheckpoint(id=row.id, name=checkpoint_name(job, row.step), job=job.id, step=row.step)
    earlier = initial_folders(state.artifacts, job.id)
    folder = job_layout.job_path(job.id, row.path)
    names = [each.path for each in state.artifacts.list_files(folder)]
    # every weight of a network has in it what came before
    folders = [folder] if job_layout.fully_trained_component(names) else [*earlier, folder]
    said = job.summary
    return InitialWeights(checkpoint, job.model, said.get("revision"), said.get("resolution"), folders)


def initial_of_job(state: ApiState, spec: TrainSpec, job_id: str) -> InitialWeights | None:
    """What a job started from, for another that starts there too."""
    if spec.initial_checkpoint is None:
        return None
    folders = initial_folders(state.artifacts, job_id)
    return InitialWeights(spec.initial_checkpoint, spec.model, spec.revision, spec.resolution, folders)


def initial_folders(artifacts: ArtifactStore, job_id: str) -> list[str]:
    """Where the weights lie that a job starts from, in the order that they are merged in."""
    initial = job_layout.job_path(job_id, job_layout.INITIAL_FOLDER)
    names = job_layout.initial_folders(each.path for each in artifacts.list_files(initial))
    return [f"{initial}/{name}" for name in names]
