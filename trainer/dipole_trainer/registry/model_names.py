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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.exc import SQLAlchemyError

from dipole.broker.messages import CheckpointRef
from dipole.errors import ConfigurationError, InvalidInput
from dipole_trainer.database.engine import Database
from dipole_trainer.database.tables import CheckpointRow, JobRow
from dipole_trainer.jobs.store import JobStore
from dipole_trainer.ranking.weight_changes import RewardSchedule, read_weight_changes
from dipole_trainer.spec import GENERATOR_FIELDS, InitialCheckpoint, LoraSpec, TrainSpec
from dipole_trainer.storage import job_layout
from dipole_trainer.storage.artifacts import ArtifactStore
from dipole_trainer.weights import base_models

_JOB_NAME = re.compile(r"(?P<job>ftjob-\w+)(:(?P<step>\d+))?")
_FINE_TUNED_NAME = re.compile(
    r"(?P<job_name>ft:[^:]*:dipole:[^:]*:(?P<job>[0-9a-f]{8}))(:ckpt-step-(?P<step>[0-9]{1,9}))?"
)


@dataclass(frozen=True)
class ModelRef:
    """A model to be evaluated: a base, and weights trained on it where `folder` is."""

    given: str
    label: str
    generator_fields: dict[str, Any]  # GENERATOR_FIELDS, those that are known, but for the precision
    folder: Path | None = None
    step: int | None = None
    precision: str | None = None  # that it was trained in, where that is known
    trained_rewards: Mapping[str, float] = field(default_factory=dict)  # weights of what its job was trained on

    @property
    def base(self) -> tuple[Any, ...]:
        initial = self.generator_fields.get("initial_checkpoint")
        started_from = InitialCheckpoint.model_validate(initial).id if initial else None
        return self.generator_fields["model"], self.generator_fields.get("revision"), started_from

    @property
    def initial(self) -> Path | None:
        """Where the weights lie that its job started from, if it started from any."""
        if self.folder is None or not self.generator_fields.get("initial_checkpoint"):
            return None
        return self.folder.parent / job_layout.INITIAL_FOLDER


class ModelResolver:
    """Finds models over one platform; checkpoints are copied below `scratch`."""

    def __init__(self, store: JobStore, artifacts: ArtifactStore, models_dir: Path, scratch: Path) -> None:
        self.store, self.artifacts, self.models_dir, self.scratch = store, artifacts, models_dir, scratch

    def resolve_models(self, given: Sequence[str]) -> list[ModelRef]:
        """Every model, with labels that tell them apart. Raises InvalidInput that names the first that is not there."""
        for name in given:
            if given.count(name) > 1:
                raise InvalidInput(f"--model {name} is given {given.count(name)} times", field="model")
        found = [self._resolve_model(name) for name in given]
        labels = [each.label for each in found]
        return [each if labels.count(each.label) == 1 else replace(each, label=each.given) for each in found]

    def _resolve_model(self, name: str) -> ModelRef:
        if match := _JOB_NAME.fullmatch(name):
            return self._resolve_job(name, select(JobRow).where(JobRow.id == match["job"]), match["step"])
        if match := _FINE_TUNED_NAME.fullmatch(name):
            like = select(JobRow).where(JobRow.id.startswith(f"ftjob-{match['job']}"))
            named = match["job_name"]
            return self._resolve_job(name, like, match["step"], lambda row: fine_tuned_name(row) == named)
        if name.startswith("ft:"):
            raise InvalidInput(f"--model {name}: there is no such job or checkpoint", field="model")
        if name.startswith("ftckpt-"):
            return self._resolve_job(
                name, select(JobRow).join(CheckpointRow).where(CheckpointRow.id == name), None, id_=name
            )
        if job_layout.step_of_checkpoint(Path(name).name) is not None:
            return _model_of_folder(name, Path(name))
        base_models.check_model_name(name, self.models_dir)
        return ModelRef(name, name, {"model": name})

    def _resolve_job(
        self,
        name: str,
        query: Select[JobRow],
        step: str | None,
        is_it: Callable[[JobRow], bool] = lambda row: True,
        *,
        id_: str | None = None,
    ) -> ModelRef:
        """The newest checkpoint of the job that `query` and `is_it` choose, or the one of that step or id."""
        with explain_database_errors(self.store.database), self.store.database.reading() as session:
            job = next((row for row in session.scalars(query) if is_it(row)), None)
            if job is None:
                raise InvalidInput(f"--model {name}: there is no such job or checkpoint", field="model")
            rows = session.scalars(
                select(CheckpointRow).where(CheckpointRow.job_id == job.id).order_by(CheckpointRow.step.desc())
            ).all()
        chosen = [row for row in rows if id_ in (None, row.id) and step in (None, str(row.step))]
        if not chosen:
            there = f"it has those of steps {', '.join(str(row.step) for row in rows)}" if rows else "it has none yet"
            raise InvalidInput(f"--model {name}: job {job.id} has no such checkpoint; {there}", field="model")
        spec, row = self.store.load_spec(job.id), chosen[0]
        folder = self.scratch / job.id / row.path
        if not self._copy_checkpoint(job_layout.job_path(job.id, row.path), folder):
            raise InvalidInput(
                f"--model {name}: its files are not in DIPOLE_ARTIFACTS_URL of this machine", field="model"
            )
        if spec.initial_checkpoint is not None:
            initial = job_layout.INITIAL_FOLDER
            self._copy_checkpoint(job_layout.job_path(job.id, initial), self.scratch / job.id / initial)
        return ModelRef(
            given=name,
            label=f"{job.summary.get('suffix') or job.id.removeprefix('ftjob-')[:8]}:{row.step}",
            generator_fields={field: getattr(spec, field) for field in GENERATOR_FIELDS if field != "precision"},
            folder=folder,
            step=row.step,
            precision=spec.precision or _trained_precision(folder),
            trained_rewards=_trained_rewards(spec, job, row.step),
        )

    def _copy_checkpoint(self, stored: str, target: Path) -> bool:
        """Whether there was anything to copy."""
        names = [each.path for each in self.artifacts.list_files(stored) if each.path != job_layout.OPTIMIZER_FILE]
        for name in names:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            with self.artifacts.open_file(f"{stored}/{name}") as source, (target / name).open("wb") as copy:
                shutil.copyfileobj(source, copy)
        return bool(names)


def _trained_rewards(spec: TrainSpec, job: JobRow, step: int) -> dict[str, float]:
    """By reward, the weight that the checkpoint of this step was last trained with."""
    return RewardSchedule(spec.rewards, read_weight_changes(job.weight_changes)).trained_before(step)


def _trained_precision(folder: Path) -> str | None:
    """As a checkpoint says it, where it followed from the device that its run began on."""
    found: str | None = json.loads((folder / job_layout.TRAINING_STATE_FILE).read_text()).get("precision")
    return found


def _model_of_folder(name: str, folder: Path) -> ModelRef:
    """A checkpoint's folder says which base it is of, and its adapter's shape; not which rewards it was trained on."""
    try:
        state = json.loads((folder / job_layout.TRAINING_STATE_FILE).read_text())
        build = {"model": state["model"], "revision": state.get("revision"), "tune": "full"}
        if (component := job_layout.adapted_component(job_layout.files_below(folder))) is not None:
            config = json.loads((folder / job_layout.adapter_config_file(component)).read_text())
            modules = sorted(config["target_modules"])
            lora = LoraSpec(rank=config["r"], alpha=config["lora_alpha"], target_modules=tuple(modules))
            build |= {"tune": "lora", "lora": lora}
        step = int(state["step"])
    except FileNotFoundError as error:
        raise InvalidInput(f"--model {name}: {error.filename} is not there", field="model") from error
    except (ValueError, LookupError, TypeError) as error:
        raise InvalidInput(f"--model {name} is no checkpoint of this version: {error!r}", field="model") from error
    own = {field: state[field] for field in ("resolution", "initial_checkpoint") if state.get(field)}
    label = f"{folder.resolve().parent.name}/{folder.name}"
    return ModelRef(name, label, {**build, **own}, folder, step, state.get("precision"))


# ---- names as the API has them --------------------------------------------------------------------------------------


def fine_tuned_name(row: JobRow) -> str:
    """As OpenAI names a job's model: ft:<model>:<organisation>:<suffix>:<id>."""
    return f"ft:{row.model}:dipole:{row.summary.get('suffix') or ''}:{row.id.removeprefix('ftjob-')[:8]}"


def checkpoint_name(row: JobRow, step: int) -> str:
    """As OpenAI names a job's checkpoint."""
    return f"{fine_tuned_name(row)}:ckpt-step-{step}"


@dataclass(frozen=True)
class ModelSource:
    """What draws: the fields of a spec that make its generator, and where the trained weights are."""

    generator: dict[str, Any]
    checkpoint: CheckpointRef | None = None


def find_model_source(name: str, database: Database, models_dir: Path) -> ModelSource:
    """What a caller's `model` means: a base, a job's `fine_tuned_model`, or a checkpoint by name or id.

    Raises InvalidInput on `model`.
    """
    found = _find_checkpoint(name, database, models_dir)
    if found is None:
        return ModelSource({"model": name})
    row, job = found
    generator = {field: job.summary[field] for field in GENERATOR_FIELDS if field in job.summary}
    return ModelSource(generator, CheckpointRef(id=row.id, job=job.id, path=row.path))


@dataclass(frozen=True)
class NamedModel:
    """A name that a caller's `model` may have; `created_at` is in Unix seconds, 0 for a base."""

    name: str
    created_at: float = 0.0

    @property
    def is_base(self) -> bool:
        return self.created_at == 0


def find_model(name: str, database: Database, models_dir: Path) -> NamedModel:
    """As `find_model_source` finds it. Raises InvalidInput on `model`."""
    found = _find_checkpoint(name, database, models_dir)
    return NamedModel(name) if found is None else NamedModel(name, found[0].created_at)


def list_models(database: Database, models_dir: Path, *, limit: int) -> list[NamedModel]:
    """Bases; then of the newest `limit` checkpoints the names, and those of the jobs that ended with them."""
    query = select(CheckpointRow, JobRow).join(JobRow, JobRow.id == CheckpointRow.job_id)
    with database.reading() as session:
        rows = session.execute(query.order_by(CheckpointRow.created_at.desc(), CheckpointRow.step.desc()).limit(limit))
        tuned: dict[str, NamedModel] = {}
        for row, job in rows:
            names = (*((fine_tuned_name(job),) if job.state == "succeeded" else ()), checkpoint_name(job, row.step))
            for name in names:
                tuned.setdefault(name, NamedModel(name, row.created_at))
    return [*map(NamedModel, base_models.available_models(models_dir)), *tuned.values()]


def find_checkpoint(name: str, database: Database) -> tuple[CheckpointRow, JobRow]:
    """The checkpoint of a name that begins with `ft:` or `ftckpt-`, and its job. Raises InvalidInput on `model`."""
    if name.startswith("ftckpt-"):
        return _latest_checkpoint(database, CheckpointRow.id == name, f"checkpoint {name}")
    return _checkpoint_of_name(database, name)


def _find_checkpoint(name: str, database: Database, models_dir: Path) -> tuple[CheckpointRow, JobRow] | None:
    """A checkpoint and its job, None for a base. Raises InvalidInput on `model`."""
    if name.startswith(("ft:", "ftckpt-")):
        return find_checkpoint(name, database)
    base_models.check_model_name(name, models_dir)
    return None


def _checkpoint_of_name(database: Database, name: str) -> tuple[CheckpointRow, JobRow]:
    """The checkpoint of a name that `fine_tuned_name` begins; without a step the job's last."""
    match = _FINE_TUNED_NAME.fullmatch(name)
    job = None
    if match is not None:
        with database.reading() as session:
            like = session.scalars(select(JobRow).where(JobRow.id.startswith(f"ftjob-{match['job']}")))
            job = next((each for each in like if fine_tuned_name(each) == match["job_name"]), None)
    if match is None or job is None:
        raise InvalidInput(
            f"unknown model {name!r}: no job has this fine_tuned_model or fine_tuned_model_checkpoint", field="model"
        )
    if match["step"] is not None:
        of_step = (CheckpointRow.job_id == job.id) & (CheckpointRow.step == int(match["step"]))
        return _latest_checkpoint(database, of_step, name)
    if job.state != "succeeded":
        raise InvalidInput(
            f"job {job.id} is {job.state} and has no fine-tuned model: name one of its checkpoints", field="model"
        )
    return _latest_checkpoint(database, CheckpointRow.job_id == job.id, name)


def _latest_checkpoint(database: Database, which: Any, name: str) -> tuple[CheckpointRow, JobRow]:
    """The latest such checkpoint and its job."""
    query = select(CheckpointRow, JobRow).join(JobRow, JobRow.id == CheckpointRow.job_id).where(which)
    with database.reading() as session:
        found = session.execute(query.order_by(CheckpointRow.step.desc()).limit(1)).first()
    if found is None:
        raise InvalidInput(f"{name} is not there: it may have been pruned; a job lists its checkpoints", field="model")
    return found[0], found[1]


@contextmanager
def explain_database_errors(database: Database) -> Iterator[None]:
    """A jobs database that does not answer becomes a ConfigurationError that names the ways without a database."""
    try:
        yield
    except SQLAlchemyError as error:
        shown = database.engine.url.render_as_string(hide_password=True)
        raise ConfigurationError(
            f"DIPOLE_DATABASE_URL {shown} does not answer, or `dipole db upgrade` was not run; without it a model is a "
            "base or a checkpoint's folder, a reward NAME=URL, and prompts are a file"
        ) from error
