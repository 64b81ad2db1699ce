"""Which precision a run computes in: as asked, else its device's default, else what it began in; and it says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dipole.tiny.world import all_prompts
from dipole_trainer.compute import gpu
from dipole_trainer.distributed.group import ProcessGroup
from dipole_trainer.ranking.in_process import InProcessRanker
from dipole_trainer.spec import TrainSpec
from dipole_trainer.storage import job_layout
from dipole_trainer.training import session
from dipole_trainer.training.precision import choose_precision, precision_advice

LINES = [{"prompt": prompt.text, "metadata": prompt.metadata} for prompt in all_prompts(held_out=False)[:2]]


def old_gpu(device: str) -> bool:
    return False


def new_gpu(device: str) -> bool:
    return device.startswith("cuda")


def bf16_anywhere(device: str) -> bool:
    """A stand-in for a GPU, which this machine's CPU can play."""
    return True


def make_spec(**changes: Any) -> TrainSpec:
    base: dict[str, Any] = {
        "prompts": LINES, "rewards": [{"name": "bright"}], "steps": 2, "candidates": 4, "prompts_per_step": 1,
        "checkpoint_every": 1,
    }  # fmt: skip
    return TrainSpec.model_validate({**base, **changes})


def choose(
    folder: Path, has_bf16: Any, device: str, processes: ProcessGroup | None = None, **changes: Any
) -> tuple[str | None, list[tuple[str, dict[str, Any]]]]:
    """The precision, and what was said of it."""
    told: list[tuple[str, dict[str, Any]]] = []
    group = processes or ProcessGroup(device)
    spec = choose_precision(make_spec(**changes), folder, group, lambda *event: told.append(event), has_bf16)
    return spec.precision, told


@pytest.mark.parametrize(
    ("device", "has_bf16", "expected"),
    [("cuda:1", new_gpu, "bf16"), ("cuda", old_gpu, "fp32"), ("cpu", new_gpu, "fp32")],
)
def test_a_job_that_names_none_follows_the_device(device: str, has_bf16: Any, expected: str, tmp_path: Path) -> None:
    """bf16 where the device has it, else fp32, and one event says so."""
    precision, told = choose(tmp_path, has_bf16, device)
    assert precision == expected
    assert [(kind, data["precision"], data["device"]) for kind, data in told] == [
        ("precision", expected, device.partition(":")[0])
    ]


@pytest.mark.parametrize("asked", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("has_bf16", [old_gpu, new_gpu])
def test_an_explicit_precision_is_obeyed(asked: str, has_bf16: Any, tmp_path: Path) -> None:
    """Whatever the device has, and whatever an earlier run of the folder began in."""
    (tmp_path / job_layout.RUN_FILE).write_text(json.dumps({"precision": "bf16", "device": "cuda"}))
    precision, told = choose(tmp_path, has_bf16, "cuda", precision=asked)
    assert precision == asked
    assert [data["why"] for _, data in told] == ["as the job says"]


def test_a_run_keeps_its_precision_on_another_device_and_says_so(tmp_path: Path) -> None:
    choose(tmp_path, new_gpu, "cuda")
    precision, told = choose(tmp_path, new_gpu, "cpu")
    assert precision == "bf16"
    assert told == [("precision_kept", {"precision": "bf16", "device": "cpu", "began_on": "cuda", "default": "fp32"})]
    again, told = choose(tmp_path, new_gpu, "cuda")
    assert again == "bf16"
    assert [(kind, data["why"]) for kind, data in told] == [("precision", "as the run began")]


def test_a_checkpoint_without_a_note_of_its_run_says_its_precision(tmp_path: Path) -> None:
    folder = tmp_path / job_layout.checkpoint_name(3)
    folder.mkdir()
    (folder / job_layout.TRAINING_STATE_FILE).write_text(json.dumps({"step": 3, "precision": "bf16"}))
    precision, told = choose(tmp_path, new_gpu, "cpu")
    assert precision == "bf16"
    assert told[0][0] == "precision_kept"


class TwoProcesses(ProcessGroup):
    """Rank 0 of two; the other computes on an older GPU."""

    size = 2

    def all_gather(self, message: Any, check_stop: Any = None) -> list[Any]:
        return [message, {"default": "fp32", "begun": None}]


def test_all_processes_compute_in_what_each_of_them_has(tmp_path: Path) -> None:
    assert choose(tmp_path, new_gpu, "cuda", TwoProcesses("cuda"))[0] == "fp32"


def test_fp32_on_a_gpu_is_warned_of() -> None:
    """Where it is asked for, and where the GPU has nothing better; fp16 is advised and never chosen."""
    assert "bf16 computes faster" in str(precision_advice(make_spec(precision="fp32"), "cuda:0", new_gpu))
    assert "fp16 computes faster" in str(precision_advice(make_spec(), "cuda:0", old_gpu))
    assert precision_advice(make_spec(), "cuda:0", new_gpu) is None
    assert precision_advice(make_spec(precision="fp32"), "cpu", old_gpu) is None
    assert precision_advice(make_spec(precision="bf16"), "cuda:0", new_gpu) is None


def test_a_cpu_is_no_gpu_with_bf16() -> None:
    """PyTorch computes bf16 on a CPU, slower than float32."""
    assert not gpu.supports_bf16("cpu")
    assert gpu.default_precision("cpu") == "fp32"


def run(folder: Path, has_bf16: Any, control: Any = lambda: "run") -> list[tuple[str, dict[str, Any]]]:
    """A whole session on this machine, which says what `has_bf16` says."""
    spec, told = make_spec(), list[tuple[str, dict[str, Any]]]()
    ranker = InProcessRanker(
        {"bright": lambda prompt, images, metadata: [float(i.mean()) for i in images]}, spec.rewards
    )
    session.run_session(
        spec, job_id="job", workdir=folder, models_dir=folder, ranker=ranker,
        on_event=lambda *event: told.append(event), control=control, has_bf16=has_bf16,
        processes=ProcessGroup("cpu"),
    )  # fmt: skip
    return told


def test_a_session_goes_on_in_the_precision_that_it_began_in(tmp_path: Path) -> None:
    """Begun as on a GPU, gone on as on a CPU: the base's weights are the same, and card and checkpoints say bf16."""
    asked = iter(["run"] * 2 + ["pause"] * 100)
    run(tmp_path, bf16_anywhere, lambda: next(asked))
    told = run(tmp_path, new_gpu)
    assert [data["precision"] for kind, data in told if kind == "precision_kept"] == ["bf16"]
    newest = job_layout.newest_checkpoint(tmp_path)
    assert newest is not None
    assert json.loads((newest / job_layout.TRAINING_STATE_FILE).read_text())["precision"] == "bf16"
    assert "| precision, seed | bf16, 0 |" in (tmp_path / "export/README.md").read_text()


def test_what_is_trained_stays_in_float32(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    run(tmp_path, bf16_anywhere)
    weights = load_file(tmp_path / "checkpoint-2" / job_layout.adapter_weights_file("unet"))
    assert {value.dtype for value in weights.values()} == {torch.float32}
