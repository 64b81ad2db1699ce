"""The four trackers, on accelerate's, with what those leave out: images where they have none, files, going on in a run.

A job is one run, called by the job's id, in the project `dipole`; a session that goes on goes on in it. Whatever a
tracker's own environment variables say counts; without them everything is in the job's folder:

    trackers/tensorboard/<job id>/    events.out.tfevents.*
    trackers/trackio/                 TRACKIO_DIR
    trackers/wandb/                   runs of WANDB_MODE=offline, for `wandb sync`
    trackers/mlflow/                  mlflow.db, artifacts/
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState, tracking
from PIL import Image

from dipole_trainer.evaluation import pictures, results
from dipole_trainer.evaluation.contact_sheet import draw_contact_sheet
from dipole_trainer.spec import TrainSpec
from dipole_trainer.storage import job_layout

PROJECT = "dipole"
JOB_TAG = "dipole.job"  # what a run of MLflow is found by, which gives runs ids of its own
SAMPLES = "samples"


@dataclass(frozen=True)
class TrackedRun:
    """`resume_step`: the step that the session goes on from, None for a new run."""

    job_id: str
    workdir: Path
    spec: TrainSpec
    config: Mapping[str, Any]
    resume_step: int | None

    def folder(self, tracker: str) -> Path:
        """Where a tracker puts its files, unless it is told otherwise."""
        found = self.workdir / job_layout.TRACKERS_FOLDER / tracker
        found.mkdir(parents=True, exist_ok=True)
        return found

    def draw_samples(self, step: int) -> Image.Image:
        """The images of a step, with the base's beside them."""
        first, *_ = pictures.sampled_steps(self.workdir)
        if step == first:
            with Image.open(self.workdir / job_layout.samples_file(step)) as sheet:
                return sheet.convert("RGB")
        report = pictures.build_sample_report(self.workdir, self.spec, first, step)
        return draw_contact_sheet(report, [results.read_sample_sheet(self.workdir, each) for each in (first, step)])


class Tracker(ABC):
    """One tracker, with one run open."""

    def __init__(self, run: TrackedRun, tracker: tracking.GeneralTracker) -> None:
        self.run = run
        self.tracker = tracker
        tracker.start()

    def log_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        self.tracker.log(dict(scalars), step=step)

    def log_samples(self, step: int) -> None:
        self.log_image(self.run.draw_samples(step), step)

    @abstractmethod
    def log_image(self, image: Image.Image, step: int) -> None: ...

    @abstractmethod
    def log_files(self, files: Sequence[Path]) -> None:
        """Keep the export's files with the run."""

    def finish(self) -> None:
        self.tracker.finish()

    def _log_artifact(self, library: Any, files: Sequence[Path]) -> None:
        """For trackers that keep files as W&B does."""
        artifact = library.Artifact(self.run.job_id, type="model")
        for path in files:
            artifact.add_file(str(path))
        self.tracker.tracker.log_artifact(artifact)


class TensorBoard(Tracker):
    """It keeps no files, so it says where they are. Settings are a text: hyperparameters would be a run each time."""

    def __init__(self, run: TrackedRun) -> None:
        # points of later steps, which are trained again, are not shown
        purge = {} if run.resume_step is None else {"purge_step": run.resume_step + 1}
        super().__init__(run, tracking.TensorBoardTracker(run.job_id, run.folder("tensorboard"), **purge))
        lines = [f"| {name} | {value} |" for name, value in run.config.items()]
        self._log_text("config", "\n".join(["| setting | value |", "|---|---|", *lines]), run.resume_step or 0)

    def log_image(self, image: Image.Image, step: int) -> None:
        self.tracker.log_images({SAMPLES: np.asarray(image)[None]}, step=step, dataformats="NHWC")

    def log_files(self, files: Sequence[Path]) -> None:
        self._log_text("export", "\n".join(f"- {path}" for path in files), self.run.spec.steps)

    def _log_text(self, name: str, text: str, step: int) -> None:
        self.tracker.log({name: text}, step=step)


class Trackio(Tracker):
    def __init__(self, run: TrackedRun) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(run.folder("trackio")))  # read at import
        import trackio

        self._library = trackio
        tracker = tracking.TrackioTracker(
            os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=run.job_id,
            resume="allow",
            config=dict(run.config),
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        super().__init__(run, tracker)

    def log_image(self, image: Image.Image, step: int) -> None:
        self.tracker.log({SAMPLES: self._library.Image(image, caption=f"step {step}")}, step=step)

    def log_files(self, files: Sequence[Path]) -> None:
        self._log_artifact(self._library, files)


class WandB(Tracker):
    """Its own steps only grow, and a run that is taken over trains some again: ours are a figure that charts go by."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        self._library = wandb
        tracker = tracking.WandBTracker(
            os.environ.get("WANDB_PROJECT", PROJECT),
            id=run.job_id,
            name=os.environ.get("WANDB_NAME", run.job_id),
            resume="allow",
            dir=os.environ.get("WANDB_DIR", str(run.folder("wandb"))),
        )
        super().__init__(run, tracker)
        self.tracker.store_init_configuration(dict(run.config))
        self.tracker.tracker.define_metric("step")
        self.tracker.tracker.define_metric("*", step_metric="step")

    def log_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        self.tracker.log({**scalars, "step": step})

    def log_image(self, image: Image.Image, step: int) -> None:
        self.tracker.log({SAMPLES: [self._library.Image(image)], "step": step})

    def log_files(self, files: Sequence[Path]) -> None:
        self._log_artifact(self._library, files)


class MLflow(Tracker):
    def __init__(self, run: TrackedRun) -> None:
        local = run.folder("mlflow")
        os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{local / 'mlflow.db'}")
        import mlflow

        self._library = mlflow
        is_ours = os.environ["MLFLOW_TRACKING_URI"].endswith(str(local / "mlflow.db"))
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        earlier = mlflow.search_runs(
            experiment_names=[project],
            filter_string=f"tags.`{JOB_TAG}` = '{run.job_id}'",
            max_results=1,
            output_format="list",
        )
        tracker = tracking.MLflowTracker(
            experiment_name=project,
            logging_dir=(local / "artifacts").as_uri() if is_ours else None,
            run_id=earlier[0].info.run_id if earlier else None,
            run_name=run.job_id,
        )
        super().__init__(run, tracker)
        mlflow.set_tag(JOB_TAG, run.job_id)
        self.tracker.store_init_configuration(dict(run.config))

    def log_image(self, image: Image.Image, step: int) -> None:
        self._library.log_image(image, key=SAMPLES, step=step)

    def log_files(self, files: Sequence[Path]) -> None:
        for path in files:
            self.tracker.log_artifact(str(path), "export")


TRACKERS: dict[str, type[Any]] = {"tensorboard": TensorBoard, "trackio": Trackio, "wandb": WandB, "mlflow": MLflow}


def open_tracker(begin: Mapping[str, Any]) -> Tracker:
    """A tracker with its run open, for what reporter.py says first."""
    run = TrackedRun(
        job_id=begin["job_id"],
        workdir=Path(begin["workdir"]),
        spec=TrainSpec.from_stored(begin["spec"]),
        config=begin["config"],
        resume_step=begin["resume_step"],
    )
    PartialState(cpu=True)  # accelerate's trackers ask it which process this is
    tracker: Tracker = TRACKERS[begin["tracker"]](run)
    return tracker
