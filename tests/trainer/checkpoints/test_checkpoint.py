"""Checkpoints are whole or not there, whenever their writer dies."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
    assert 0 < len(files(tmp_path / ".checkpoint-1.gone")) < len(whole)
    resume_state.remove_partial_checkpoints(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"checkpoint-{step}" for step in left]


def test_saved_again_it_is_replaced(tmp_path: Path) -> None:
    """And nothing else is left, also where an earlier removal was cut short."""
    save(tmp_path, 1)
    (tmp_path / "checkpoint-1/old").touch()
    (tmp_path / ".checkpoint-1.gone/unet_lora").mkdir(parents=True)
    save(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert not (tmp_path / "checkpoint-1/old").exists()


def test_a_resume_sweeps_what_was_cut_short(tmp_path: Path) -> None:
    """Of checkpoints written and of checkpoints removed."""
    for name in (".checkpoint-3.partial/unet_lora", ".checkpoint-1.gone"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "adapter_model.safetensors").touch()
    ranker = InProcessRanker({"bright": lambda prompt, images, metadata: images.mean((1, 2, 3)).tolist()})
    session.run_session(
        SPEC, job_id="job", workdir=tmp_path, models_dir=tmp_path, ranker=ranker, on_event=lambda kind, data: None,
        control=lambda: "run",
    )  # fmt: skip
    ranker.close()
    assert list(tmp_path.glob(".*")) == []
    assert job_layout.checkpoint_steps(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize("url", ["folder", "memory://test-checkpoint"])
def test_no_listing_and_no_store_has_what_is_not_whole(tmp_path: Path, url: str) -> None:
    """Dot-folders stay on the machine that writes them."""
    artifacts = ArtifactStore(str(tmp_path / url) if url == "folder" else url, tmp_path / "scratch")
    workdir = artifacts.job_workdir("ftjob-1")
    for name in (".checkpoint-3.partial", ".checkpoint-1.gone", "checkpoint-2"):
        (workdir / name).mkdir(parents=True)
        (workdir / name / "training_state.json").write_text("{}")
    artifacts.sync_job("ftjob-1", workdir)
    listed = {each.path for each in artifacts.list_files("jobs/ftjob-1")}
    assert listed - {"checkpoint-2/complete"} == {"checkpoint-2/training_state.json"}
