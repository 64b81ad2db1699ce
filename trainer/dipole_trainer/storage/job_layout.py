"""A job's folder, and the store around it: the one place that names their files.

    files/<file id>.jsonl                       uploads
    jobs/<job id>/
      checkpoint-N/                             what a run resumes from (checkpoints/resume_state.py)
        training_state.json  optimizer.safetensors
        groups_in_flight.safetensors            drawn ahead, and pending at a slow reward; in the newest alone
        <component>_lora/adapter_model.safetensors, adapter_config.json     an adapter; with `tune: full` instead
        <component>/diffusion_pytorch_model.safetensors                     every weight
        ema/                                    with `optimizer.ema`: their moving average, laid out like them
        complete                                in a copy only, written last: without it the copy was cut short
      initial/0/, initial/1/, ...               weights of the checkpoints that it starts from, merged in this order;
                                                each as in a checkpoint, without the rest of it
      candidates/step-N.safetensors             what was ranked, with `record_candidates` (datasets/recordings.py)
      evaluation/step-N.json                    figures, and every score behind them
      samples/step-N.png  prompts.json          the same prompts and noises at each; a row a prompt, a column a noise
      samples/step-N.json                       what was found of them: a point of the curves
      metrics.jsonl                             a line a step: what its event says
      run.json                                  what the run chose when it began, and keeps (training/precision.py)
      unverified-rewards.json                   rewards whose scores nobody compared with the published implementation's
      verified-rewards.json                     and those whose endpoint says that they were compared
      trackers/<tracker>/                       of trackers that were not told to write elsewhere (trackers/backends.py)
      export/                                   what other people's tools load (checkpoints/export.py)
        report.html                             of a job that has ended (reports/report.py)

<component> is the part of the pipeline that is trained, as its generator names it. Paths have slashes and are relative
to the folder that their function says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

CANDIDATES_FOLDER, EVALUATION_FOLDER, SAMPLES_FOLDER, EXPORT_FOLDER = "candidates", "evaluation", "samples", "export"
RUN_FILE, METRICS_FILE, CURVES_FILE = "run.json", "metrics.jsonl", "curves.png"
INITIAL_FOLDER, TRACKERS_FOLDER, EMA_FOLDER = "initial", "trackers", "ema"
GROUPS_IN_FLIGHT_FILE = "groups_in_flight.safetensors"
MERGED_FOLDER, EXPORTED_SAMPLES_FILE, MODEL_CARD_FILE = "merged", "samples.png", "README.md"
TRAINING_STATE_FILE, OPTIMIZER_FILE, COMPLETE_MARK = "training_state.json", "optimizer.safetensors", "complete"
UNVERIFIED_REWARDS_FILE, VERIFIED_REWARDS_FILE = "unverified-rewards.json", "verified-rewards.json"
REPORT_FILE = f"{EXPORT_FOLDER}/report.html"
ADAPTER_CONFIG_NAME = "adapter_config.json"

_CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")
_STEP_NAME = re.compile(r"step-(\d+)\.\w+")
_ADAPTER_CONFIG_PATH = re.compile(rf"(?P<component>\w+)_lora/{re.escape(ADAPTER_CONFIG_NAME)}")
_FULL_WEIGHTS_PATH = re.compile(r"(?P<component>\w+)/diffusion_pytorch_model\.safetensors")


# ---- in the store ---------------------------------------------------------------------------------------------------


def upload_path(file_id: str) -> str:
    """Where an uploaded file is."""
    return f"files/{file_id}.jsonl"


def job_path(job_id: str, name: str = "") -> str:
    """A job's folder, or what is called `name` in it."""
    return f"jobs/{job_id}/{name}".rstrip("/")


# ---- in a job's folder ----------------------------------------------------------------------------------------------


def checkpoint_name(step: int) -> str:
    return f"checkpoint-{step}"


def step_of_checkpoint(name: str) -> int | None:
    """The step of a checkpoint's name; None where it is no checkpoint's."""
    match = _CHECKPOINT_NAME.fullmatch(name)
    return int(match[1]) if match else None


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps that have a whole checkpoint in a job's folder, ascending."""
    if not folder.is_dir():
        return []
    steps = (step_of_checkpoint(path.name) for path in folder.iterdir())
    return sorted(step for step in steps if step is not None)


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the highest step, if there is one."""
    steps = checkpoint_steps(folder)
    return folder / checkpoint_name(steps[-1]) if steps else None


def evaluation_file(step: int) -> str:
    return f"{EVALUATION_FOLDER}/step-{step}.json"


def samples_file(step: int) -> str:
    return f"{SAMPLES_FOLDER}/step-{step}.png"


def sample_figures_file(step: int) -> str:
    return f"{SAMPLES_FOLDER}/step-{step}.json"


def sample_prompts_file() -> str:
    """The prompts of the rows of every sheet of samples."""
    return f"{SAMPLES_FOLDER}/prompts.json"


def candidates_file_name(step: int) -> str:
    """A step's file in CANDIDATES_FOLDER."""
    return f"step-{step}.safetensors"


def step_of_file(name: str) -> int | None:
    """The step of a file called step-N; None where it is called otherwise."""
    match = _STEP_NAME.fullmatch(name)
    return int(match[1]) if match else None


def sort_candidate_files(names: Iterable[str]) -> list[str]:
    """Those of the names that are steps in CANDIDATES_FOLDER, by number."""
    steps = {step: name for name in names if name.endswith(".safetensors") and (step := step_of_file(name)) is not None}
    return [steps[step] for step in sorted(steps)]


# ---- in a checkpoint ------------------------------------------------------------------------------------------------


def adapter_weights_file(component: str) -> str:
    return f"{component}_lora/adapter_model.safetensors"


def adapter_config_file(component: str) -> str:
    return f"{component}_lora/{ADAPTER_CONFIG_NAME}"


def full_weights_file(component: str) -> str:
    return f"{component}/diffusion_pytorch_model.safetensors"


def adapted_component(names: Iterable[str]) -> str | None:
    """The component that a checkpoint of these files has an adapter for; None where it has none."""
    return next((match["component"] for name in names if (match := _ADAPTER_CONFIG_PATH.fullmatch(name))), None)


def fully_trained_component(names: Iterable[str]) -> str | None:
    """The component that a checkpoint of these files has every weight of; None where it has not."""
    return next((match["component"] for name in names if (match := _FULL_WEIGHTS_PATH.fullmatch(name))), None)


def weight_files(names: Iterable[str]) -> list[str]:
    """Those of a checkpoint's files that are what it trained: an adapter and its settings, or every weight."""
    names = list(names)
    if (component := adapted_component(names)) is not None:
        return [adapter_config_file(component), adapter_weights_file(component)]
    component = fully_trained_component(names)
    return [] if component is None else [full_weights_file(component)]


def initial_folders(names: Iterable[str]) -> list[str]:
    """Folders in INITIAL_FOLDER, in the order that they are merged in, of the files in it."""
    found = {name.partition("/")[0] for name in names}
    return sorted((name for name in found if name.isdecimal()), key=int)


def files_below(folder: Path) -> list[str]:
    """Every file in a local folder, by path relative to it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
