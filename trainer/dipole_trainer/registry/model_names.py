"""What an evaluation's `--model` may name, and where its weights are. No torch.

    tiny-turbo, sd-turbo, org/name            a base model, as jobs name them
    ftjob-…            ftjob-…:60             a job's newest checkpoint, and the one at step 60
    ftckpt-…                                  a checkpoint's id
    ft:tiny-turbo:dipole:suffix:0b5e7f2c      a fine-tuned model's name; its checkpoints' end in :ckpt-step-60
    out/checkpoint-60                         a checkpoint's folder on this machine

A stored checkpoint is copied first, without its optimiser: its job may train on and prune it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.exc import SQLAlchemyError

from dipole.errors import ConfigurationError, InvalidInput
from dipole_trainer.database.engine import Database
from dipole_trainer.database.tables import Checkpoint, Job
from dipole_trainer.jobs.store import JobStore
from dipole_trainer.spec import LoraSpec
from dipole_trainer.storage.artifacts import Artifacts
from dipole_trainer.weights import base_models

BUILDS = ("model", "revision", "tune", "lora", "resolution")  # fields of a job's spec that its generator depends on
OPTIMIZER = "optimizer.safetensors"
_JOB = re.compile(r"(?P<job>ftjob-\w+)(:(?P<step>\d+))?")
_TUNED = re.compile(r"ft:(?P<model>[^:]+):dipole:(?P<suffix>[^:]*):(?P<job>\w{8})(:ckpt-step-(?P<step>\d+))?")
_FOLDER = re.compile(r"checkpoint-\d+")


@dataclass(frozen=True)
class NamedModel:
    """A model to be evaluated: a base, and weights trained on it where `folder` is."""

    given: str
    label: str
    build: dict[str, Any]  # BUILDS, those that are known
    folder: Path | None = None
    step: int | None = None
    precision: str | None = None  # that it was trained in, where that is known
    trained: tuple[str, ...] = ()  # rewards that its job was trained on

    @property
    def base(self) -> tuple[Any, Any]:
        return self.build["model"], self.build.get("revision")


class NamedModels:
    """Finds models over one platform; checkpoints are copied below `scratch`."""

    def __init__(self, store: JobStore, artifacts: Artifacts, models_dir: Path, scratch: Path) -> None:
        self.store, self.artifacts, self.models_dir, self.scratch = store, artifacts, models_dir, scratch

    def find(self, given: Sequence[str]) -> list[NamedModel]:
        """Every model, with labels that tell them apart. Raises InvalidInput that names the first that is not there."""
        for name in given:
            if given.count(name) > 1:
                raise InvalidInput(f"--model {name} is given {given.count(name)} times", field="model")
        found = [self._find(name) for name in given]
        labels = [each.label for each in found]
        return [each if labels.count(each.label) == 1 else replace(each, label=each.given) for each in found]

    def _find(self, name: str) -> NamedModel:
        if match := _JOB.fullmatch(name):
            return self._of_job(name, select(Job).where(Job.id == match["job"]), match["step"])
        if match := _TUNED.fullmatch(name):
            job = select(Job).where(
                Job.id.startswith(f"ftjob-{match['job']}", autoescape=True), Job.model == match["model"]
            )
            suffix = match["suffix"]
            return self._of_job(name, job, match["step"], lambda row: (row.summary.get("suffix") or "") == suffix)
        if name.startswith("ftckpt-"):
            return self._of_job(name, select(Job).join(Checkpoint).where(Checkpoint.id == name), None, id_=name)
        if _FOLDER.fullmatch(Path(name).name):
            return _of_folder(name, Path(name))
        base_models.check_name(name, self.models_dir)
        return NamedModel(name, name, {"model": name})

    def _of_job(
        self,
        name: str,
        query: Select[Job],
        step: str | None,
        is_it: Callable[[Job], bool] = lambda row: True,
        *,
        id_: str | None = None,
    ) -> NamedModel:
        """The newest checkpoint of the job that `query` and `is_it` choose, or the one of that step or id."""
        with reading(self.store.database), self.store.database.reading() as session:
            job = next((row for row in session.scalars(query) if is_it(row)), None)
            if job is None:
                raise InvalidInput(f"--model {name}: there is no such job or checkpoint", field="model")
            rows = session.scalars(
                select(Checkpoint).where(Checkpoint.job_id == job.id).order_by(Checkpoint.step.desc())
            ).all()
        chosen = [row for row in rows if id_ in (None, row.id) and step in (None, str(row.step))]
        if not chosen:
            there = f"it has those of steps {', '.join(str(row.step) for row in rows)}" if rows else "it has none yet"
            raise InvalidInput(f"--model {name}: job {job.id} has no such checkpoint; {there}", field="model")
        spec, row = self.store.spec(job.id), chosen[0]
        folder = self.scratch / job.id / row.path
        if not self._copy(f"jobs/{job.id}/{row.path}", folder):
            raise InvalidInput(
                f"--model {name}: its files are not in DIPOLE_ARTIFACTS_URL of this machine", field="model"
            )
        return NamedModel(
            given=name,
            label=f"{job.summary.get('suffix') or job.id.removeprefix('ftjob-')[:8]}:{row.step}",
            build={field: getattr(spec, field) for field in BUILDS},
            folder=folder,
            step=row.step,
            precision=spec.precision,
            trained=tuple(reward.name for reward in spec.rewards if reward.weight > 0),
        )

    def _copy(self, stored: str, target: Path) -> bool:
        """Whether there was anything to copy."""
        names = [artifact.path for artifact in self.artifacts.list(stored) if artifact.path != OPTIMIZER]
        for name in names:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            with self.artifacts.open(f"{stored}/{name}") as source, (target / name).open("wb") as copy:
                shutil.copyfileobj(source, copy)
        return bool(names)


def _of_folder(name: str, folder: Path) -> NamedModel:
    """A checkpoint's folder says which base it is of, and its adapter's shape; not which rewards it was trained on."""
    try:
        state = json.loads((folder / "training_state.json").read_text())
        build = {"model": state["model"], "revision": state.get("revision"), "tune": "full"}
        if (adapter := folder / "unet_lora/adapter_config.json").is_file():
            config = json.loads(adapter.read_text())
            modules = sorted(config["target_modules"])
            lora = LoraSpec(rank=config["r"], alpha=config["lora_alpha"], target_modules=tuple(modules))
            build |= {"tune": "lora", "lora": lora}
        step = int(state["step"])
    except FileNotFoundError as error:
        raise InvalidInput(f"--model {name}: {error.filename} is not there", field="model") from error
    except (ValueError, LookupError, TypeError) as error:
        raise InvalidInput(f"--model {name} is no checkpoint of this version: {error!r}", field="model") from error
    own = {field: state[field] for field in ("resolution",) if state.get(field)}
    label = f"{folder.resolve().parent.name}/{folder.name}"
    return NamedModel(name, label, {**build, **own}, folder, step, state.get("precision"))


@contextmanager
def reading(database: Database) -> Iterator[None]:
    """A jobs database that does not answer is told in a sentence: an evaluation may do without one."""
    try:
        yield
    except SQLAlchemyError as error:
        shown = database.engine.url.render_as_string(hide_password=True)
        raise ConfigurationError(
            f"DIPOLE_DATABASE_URL {shown} does not answer, or `dipole db upgrade` was not run; without it a model is a "
            "base or a checkpoint's folder, a reward NAME=URL, and prompts are a file"
        ) from error
