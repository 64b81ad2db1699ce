"""Checkpoints are whole or not there, whenever their writer dies."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from dipole.errors import LeaseLost
from dipole_trainer import generators
from dipole_trainer.checkpoints import resume_state
from dipole_trainer.ranking.in_process import InProcessRanker
from dipole_trainer.spec import TrainSpec
from dipole_trainer.storage import job_layout
from dipole_trainer.storage.artifacts import ArtifactStore
from dipole_trainer.training import session

SPEC = TrainSpec.model_validate({
    "prompts": [{"prompt": "a red circle"}], "rewards": [{"name": "bright"}], "steps": 3, "candidates": 2,
    "prompts_per_step": 1, "checkpoint_every": 1, "method": {"drpo": {"positives": 1, "negatives": 1}},
})  # fmt: skip

# Does what its second argument says below the folder of its first, and is killed when it removes a second file.
KILLED = """
import os, signal, sys
from pathlib import Path

import torch

from dipole_trainer import generators
from dipole_trainer.checkpoints import resume_state
from dipole_trainer.spec import TrainSpec

folder, what, spec = Path(sys.argv[1]), sys.argv[2], TrainSpec.model_validate_json(sys.argv[3])
generator = generators.build_generator(spec, models_dir=folder)
optimizer = torch.optim.AdamW(generator.parameters())
removed = []


def hook(event, arguments):
    if event == "os.remove" and "checkpoint-1" in str(arguments[0]) + os.readlink(f"/proc/self/fd/{arguments[1]}"):
        removed.append(arguments[0])
        if len(removed) == 2:
            os.kill(os.getpid(), signal.SIGKILL)


sys.addaudithook(hook)
if what == "prune":
    resume_state.prune_checkpoints(folder, keep=1)
else:
    resume_state.save_checkpoint(folder, 1, generator, optimizer, {})
"""


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def save(folder: Path, *steps: int) -> None:
    generator = generators.build_generator(SPEC, models_dir=folder)
    for step in steps:
        resume_state.save_checkpoint(folder, step, generator, torch.optim.AdamW(generator.parameters()), {})


@pytest.mark.parametrize(("what", "left"), [("prune", [2]), ("save", [1, 2])])
def test_killed_while_it_removes_one_it_leaves_no_half_of_it(tmp_path: Path, what: str, left: list[int]) -> None:
    """Pruned, or replaced by another of its step: whichever has its name has its files. `remove_partial_checkpoints`
    removes the rest.
    """
    save(tmp_path, 1, 2)
    whole = files(tmp_path / "checkpoint-2")
    command = [sys.executable, "-c", KILLED, str(tmp_path), what, SPEC.model_dump_json()]
    assert subprocess.run(command, check=False, timeout=120).returncode == -signal.SIGKILL
    assert job_layout.checkpoint_steps(tmp_path) == left
    assert all(files(tmp_path / f"checkpoint-{step}") == whole for step in left)
    (gone,) = tmp_path.glob(".checkpoint-1.*.gone")
    assert 0 < len(files(gone)) < len(whole)
    resume_state.remove_partial_checkpoints(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"checkpoint-{step}" for step in left]


def test_saved_again_it_is_replaced(tmp_path: Path) -> None:
    """And nothing else is left."""
    save(tmp_path, 1)
    (tmp_path / "checkpoint-1/old").touch()
    save(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert not (tmp_path / "checkpoint-1/old").exists()


def test_a_resume_sweeps_what_was_cut_short(tmp_path: Path) -> None:
    """Of checkpoints written and of checkpoints removed."""
    for name in (".checkpoint-3.0f.partial/unet_lora", ".checkpoint-1.0f.gone"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "adapter_model.safetensors").touch()
    train(tmp_path)
    assert list(tmp_path.glob(".*")) == []
    assert job_layout.checkpoint_steps(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize("lost", ["step", "control"])
def test_who_has_lost_the_job_writes_nothing_into_its_folder(tmp_path: Path, lost: str) -> None:
    """A worker that stood still in an update wakes up beside the one that took the job over, in the same folder: found
    out when it tells of the step, or when it is about to write the checkpoint."""
    train(tmp_path)
    before = {path: (tmp_path / path).read_bytes() for path in files(tmp_path)}
    resume_state.remove_checkpoints_after(tmp_path, 2)
    told: list[str] = []

    def on_event(kind: str, data: Any) -> None:
        told.append(kind)
        if kind == lost:
            for path, data in before.items():  # what the other has written meanwhile
                (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / path).write_bytes(data)
            raise LeaseLost("another worker holds it")

    def control() -> Literal["run"]:
        if lost == "control" and "step" in told:
            (tmp_path / "metrics.jsonl").write_bytes(before["metrics.jsonl"])
            raise LeaseLost("another worker holds it")
        return "run"

    with pytest.raises(LeaseLost):
        train(tmp_path, on_event, control)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before["metrics.jsonl"]
    assert job_layout.checkpoint_steps(tmp_path) == ([1, 2, 3] if lost == "step" else [1, 2])
    assert list(tmp_path.glob(".*")) == []


def train(
    folder: Path,
    on_event: Callable[[str, Any], None] = lambda kind, data: None,
    control: Callable[[], Literal["run"]] = lambda: "run",
) -> None:
    ranker = InProcessRanker({"bright": lambda prompt, images, metadata: images.mean((1, 2, 3)).tolist()})
    try:
        session.run_session(
            SPEC, job_id="job", workdir=folder, models_dir=folder, ranker=ranker, on_event=on_event, control=control
        )
    finally:
        ranker.close()


@pytest.mark.parametrize("url", ["folder", "memory://test-checkpoint"])
def test_no_listing_and_no_store_has_what_is_not_whole(tmp_path: Path, url: str) -> None:
    """Dot-folders stay on the machine that writes them."""
    artifacts = ArtifactStore(str(tmp_path / url) if url == "folder" else url, tmp_path / "scratch")
    workdir = artifacts.job_workdir("ftjob-1")
    for name in (".checkpoint-3.0f.partial", ".checkpoint-1.0f.gone", "checkpoint-2"):
        (workdir / name).mkdir(parents=True)
        (workdir / name / "training_state.json").write_text("{}")
    artifacts.sync_job("ftjob-1", workdir)
    listed = {each.path for each in artifacts.list_files("jobs/ftjob-1")}
    assert listed - {"checkpoint-2/complete"} == {"checkpoint-2/training_state.json"}
