"""Several processes, started by `accelerate launch`: they train what one process trains, and end a run together."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from PIL import Image
from safetensors.torch import load_file

from dipole.errors import DipoleError, InvalidInput, NothingToLearn, RewardUnavailable
from dipole_trainer.distributed.failures import exception_from_json, exception_to_json
from dipole_trainer.distributed.group import ProcessGroup
from dipole_trainer.storage import job_layout

pytestmark = pytest.mark.timeout(900)  # the first test waits for all runs of three launches

# Trains the runs on its command line, one after the other in the same processes. A run is its name, its settings, and
# what befalls it, by rank; one named a+ goes on in the folder of a.
SCRIPT = '''
import json, os, signal, sys, time
from pathlib import Path

from dipole import logs
from dipole.tiny.world import all_prompts
from dipole_trainer.distributed.failures import PeerLost
from dipole_trainer.distributed.launch import current_group
from dipole_trainer.ranking.in_process import InProcessRanker
from dipole_trainer.ranking.weight_changes import WeightChange
from dipole_trainer.spec import TrainSpec
from dipole_trainer.training import session
from dipole_trainer.worker.followers import run_as_follower

LINES = [{"prompt": prompt.text, "metadata": prompt.metadata} for prompt in all_prompts(held_out=False)[:6]]
BASE = {
    "model": "tiny-turbo", "prompts": LINES, "rewards": [{"name": "bright"}], "steps": 3, "candidates": 4,
    "prompts_per_step": 2, "chunk_size": 4, "checkpoint_every": 100, "optimizer": {"lr": 1e-3}, "lora": {"rank": 4},
    "method": {"drpo": {"positives": 2, "negatives": 2}},
}
CHANGES = [WeightChange(weights={"bright": -1}, step=1)]
logs.configure_logging("test")
out, processes = Path(sys.argv[1]), current_group()


class Ranker(InProcessRanker):
    """Has something befall the second step."""

    def __init__(self, spec, happens):
        super().__init__({"bright": self.bright}, spec.rewards)
        self.happens, self.step = happens, None

    def bright(self, prompt, images, metadata):
        if self.step == 1 and self.happens == "reward fails":
            raise RuntimeError("gone")
        if self.step == 1 and self.happens == "reward is slow":
            time.sleep(30)
        if self.happens == "flat":
            return [1.0] * len(images)
        return [float(value) for value in images.astype("float64").mean((1, 2, 3))]

    def submit(self, group):
        self.step = group.step
        if self.step == 1 and self.happens == "error":
            raise RuntimeError("no paper left")
        if self.step == 1 and self.happens == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        super().submit(group)


def run(name, changes, befalls):
    """`befalls` tells what happens by rank."""
    spec, events = TrainSpec.model_validate({**BASE, **changes}), []
    happens, began = befalls.get(str(processes.rank)), time.monotonic()
    ranker = Ranker(spec, happens)

    def control():
        stepped = any(kind == "step" for kind, _ in events)
        waited = time.monotonic() - began > 3
        return "pause" if happens == "pause" and stepped or happens == "pause late" and stepped and waited else "run"

    def train():
        return session.run_session(
            spec, job_id=name,
            workdir=out / name.rstrip("+") if processes.is_main else out / f"{name}-{processes.rank}",
            models_dir=out, ranker=ranker, control=control, processes=processes,
            take_weight_changes=lambda step: CHANGES if name.startswith("ema") and processes.is_main else (),
            on_event=(lambda kind, data: events.append((kind, data))) if processes.is_main else processes.report,
        )

    told = {"outcome": None, "error": None}
    if processes.is_main:
        try:
            told["outcome"] = train()
        except PeerLost:
            raise
        except Exception as error:
            told["error"] = f"{type(error).__name__}: {error}"
        finally:
            processes.leave_run()
        told.update(events=events, seconds=time.monotonic() - began)
        (out / f"{name}.json").write_text(json.dumps(told))
    else:
        run_as_follower(processes, train)
    ranker.close()


for each in json.loads(sys.argv[2]):
    run(*each)
processes.close()
os._exit(0)  # slow rewards are threads that still sleep
'''

SILENT = """
import os, signal
from dipole_trainer.distributed.torch_group import TorchProcessGroup

processes = TorchProcessGroup(on_cpu=True, silence_s=1)
if not processes.is_main:
    os.kill(os.getpid(), signal.SIGSTOP)
processes.all_gather({})
"""

EVALUATION = {"evaluation": {"prompts": [{"prompt": f"a red {shape}"} for shape in ("circle", "square", "cross")]}}
WIDE = {"prompts_per_step": 5, "max_staleness": 1, "record_candidates": True}
FULL = {"tune": "full", "prompts_per_step": 2}
EMA = {**EVALUATION, "optimizer": {"lr": 1e-3, "ema": {"decay": 0.5, "evaluated": True}}}
SAME = [("whole", EVALUATION, {}), ("wide", WIDE, {}), ("full", FULL, {}), ("ema", EMA, {})]
KILLED = ("killed", {"checkpoint_every": 1}, {"1": "killed"})
TOGETHER = [
    *SAME,
    ("killed+", {}, {}),
    ("paused", {}, {"0": "pause"}),
    ("paused+", {}, {}),
    ("unavailable", {}, {"1": "reward fails"}),
    ("unavailable+", {}, {}),
    ("broken", {}, {"1": "error"}),
    ("late", {}, {"0": "pause late", "1": "reward is slow"}),
    ("ema_paused", EMA, {"0": "pause"}),
    ("ema_paused+", EMA, {}),
    ("full_paused", FULL, {"0": "pause"}),
    ("full_paused+", FULL, {}),
    ("flat", {"steps": 1, "prompts_per_step": 4}, {"0": "flat", "1": "flat"}),
]


def launch(folder: Path, runs: list[Any], processes: int) -> subprocess.CompletedProcess[str]:
    """Have the runs trained by so many processes of one launcher."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command = [sys.executable, *(launcher if processes > 1 else []), str(script), str(folder), json.dumps(runs)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


class Runs:
    """What runs of a launch left: outcome, error and events by name, weights from their folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, name: str) -> dict[str, Any]:
        told: dict[str, Any] = json.loads((self.folder / f"{name}.json").read_text())
        return told

    def events(self, name: str, kind: str) -> list[dict[str, Any]]:
        return [data for each, data in self[name]["events"] if each == kind]

    def weights(self, name: str, *, average: bool = False) -> dict[str, torch.Tensor]:
        trained = job_layout.newest_checkpoint(self.folder / name)
        assert trained is not None
        folder = trained / job_layout.EMA_FOLDER if average else trained
        (file,) = [path for path in folder.glob("*/*.safetensors") if path.parent.name != job_layout.EMA_FOLDER]
        return load_file(file)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("alone")
    done = launch(folder, SAME, 1)
    assert done.returncode == 0, done.stderr[-4000:]
    return Runs(folder)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Two processes, the second of which ends by kill -9."""
    folder = tmp_path_factory.mktemp("two")
    done = launch(folder, [KILLED], 2)
    assert done.returncode != 0
    assert "exitcode  : -9" in done.stderr
    assert not (folder / "killed.json").exists()
    assert job_layout.checkpoint_steps(folder / "killed") == [1]
    return Runs(folder)


@pytest.fixture(scope="module")
def two(killed: Runs) -> Runs:
    """All runs in the same two processes: that each is there says that the one before left them in step."""
    done = launch(killed.folder, TOGETHER, 2)
    assert done.returncode == 0, done.stderr[-4000:]
    return killed


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> torch.Tensor:
    """How far each weight is from the other's."""
    assert one.keys() == other.keys()
    return torch.cat([(one[name] - other[name]).abs().flatten() for name in one])


def test_two_processes_reach_the_weights_of_one(alone: Runs, two: Runs) -> None:
    """The same job, half its prompts each: the same weights, an adapter's and every weight's.

    Two gradients have one sum in either order, so of two prompts a step the weights are equal to the last bit. Of more,
    they are to rounding; where a gradient is about nought Adam makes a good part of an update, 1e-3, of that.
    """
    for name in ("whole", "full"):
        assert two[name]["outcome"] == alone[name]["outcome"] == "succeeded"
        assert same(two.weights(name), alone.weights(name))
    difference = apart(two.weights("wide"), alone.weights("wide"))
    assert difference.mean() < 1e-6
    assert difference.max() < 3e-4


def test_two_processes_agree_on_changed_weights_and_the_moving_average(alone: Runs, two: Runs) -> None:
    """To the last bit, also where they were paused and resumed; evaluations, which both share, are of the average."""
    for name in ("ema", "ema_paused"):
        assert same(two.weights(name), alone.weights("ema"))
        assert same(two.weights(name, average=True), alone.weights("ema", average=True))
    assert not same(two.weights("ema"), two.weights("whole"))
    assert not same(two.weights("ema"), two.weights("ema", average=True))
    for one, other in zip(alone.events("ema", "evaluation"), two.events("ema", "evaluation"), strict=True):
        assert one["weights"] == other["weights"] == "ema"
        assert other["scores"]["bright"]["mean"] == pytest.approx(one["scores"]["bright"]["mean"], rel=1e-4)


def test_rank_0_reports_for_both(alone: Runs, two: Runs) -> None:
    """Each step is told once, with the losses and scores of all its prompts; nothing else writes a file."""
    for one, other in zip(alone.events("whole", "step"), two.events("whole", "step"), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert other["rewards"] == pytest.approx(one["rewards"], rel=1e-4)
    assert list(two.folder.glob("*-1/*")) == []


def test_an_evaluation_is_shared(alone: Runs, two: Runs) -> None:
    """Scores, figures and the sheet of samples are those of one process."""
    ones, others = alone.events("whole", "evaluation"), two.events("whole", "evaluation")
    assert [each["step"] for each in others] == [0, 3]
    for one, other in zip(ones, others, strict=True):
        assert other["scores"]["bright"]["mean"] == pytest.approx(one["scores"]["bright"]["mean"], rel=1e-4)
        files = [json.loads((runs.folder / "whole" / one["path"]).read_text())["prompts"] for runs in (alone, two)]
        assert [each["prompt"] for each in files[0]] == [each["prompt"] for each in files[1]]
    sheets = [np.asarray(Image.open(runs.folder / "whole/samples/step-0.png"), int) for runs in (alone, two)]
    assert np.abs(sheets[0] - sheets[1]).max() <= 1  # generated in other batches


def test_candidates_are_recorded_by_one(alone: Runs, two: Runs) -> None:
    """A step's file holds the groups of all processes, in the order of the window."""
    one, other = (load_file(runs.folder / "wide/candidates/step-0.safetensors") for runs in (alone, two))
    assert sorted(name for name in other if name.isdigit()) == ["0", "1", "2", "3", "4"]
    assert same(one, other)


@pytest.mark.parametrize(("name", "whole"), [("paused", "whole"), ("full_paused", "full")])
def test_paused_and_resumed_together(alone: Runs, two: Runs, name: str, whole: str) -> None:
    """Told to rank 0 alone, a pause stops both after a checkpoint; the other process has no file to resume from."""
    assert two[name]["outcome"] == "paused"
    assert two.events(f"{name}+", "resumed") == [{"step": 1}]
    assert two[f"{name}+"]["outcome"] == "succeeded"
    assert same(two.weights(name), alone.weights(whole))


def test_a_reward_that_is_away_for_one_process_pauses_all(alone: Runs, two: Runs) -> None:
    """RewardUnavailable on rank 1 is raised on rank 0, after a checkpoint, with its reward; then it goes on."""
    assert two["unavailable"]["error"].startswith("RewardUnavailable: reward bright: invalid_response")
    assert [data["step"] for data in two.events("unavailable", "checkpoint")] == [1]
    assert two.events("unavailable+", "resumed") == [{"step": 1}]
    assert same(two.weights("unavailable"), alone.weights("whole"))


def test_an_error_on_another_process_is_the_runs_error(two: Runs) -> None:
    """With its sentence, and where it was; the first process does not wait for the other's share."""
    assert two["broken"]["error"] == "DipoleError: RuntimeError: no paper left (process 1 of 2)"


def test_a_pause_is_heard_while_another_process_waits_for_a_reward(two: Runs) -> None:
    """Rank 0 has done its share; rank 1's reward takes half a minute, or days. The pause takes seconds."""
    assert two["late"]["outcome"] == "paused"
    assert two["late"]["seconds"] < 20
    assert [data["step"] for data in two.events("late", "checkpoint")] == [1]


def test_skipped_groups_of_others_are_told(two: Runs) -> None:
    """In the order of ranks, rank 0's first."""
    groups = [data["group"] for data in two.events("flat", "skipped_group")]
    assert [group.rpartition(".")[2] for group in groups] in (["0", "2", "1", "3"], ["2", "0", "1", "3"])
    assert two.events("flat", "step")[0]["skipped"] == 4


def test_a_killed_process_ends_the_launch_and_costs_a_step(alone: Runs, two: Runs) -> None:
    """After kill -9 of rank 1 the launcher fails at once, and other processes go on to the same weights."""
    assert two.events("killed+", "resumed") == [{"step": 1}]
    assert same(two.weights("killed"), alone.weights("whole"))


def test_a_silent_process_ends_the_others() -> None:
    """One that is stopped stands for a machine that lost power: its connections stay open, and nobody waits for it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SILENT],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    try:
        said, _ = processes[0].communicate(timeout=60)
        assert processes[0].returncode == 1
        assert b"process_silent" in said
        assert processes[1].poll() is None
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_accelerate_takes_the_documented_commands() -> None:
    """Every `accelerate launch …` of the page parses, and starts a module that is there."""
    page = (Path(__file__).parents[3] / "docs/several-gpus.md").read_text().replace("\\\n", " ")
    commands = [shlex.split(line)[2:] for line in page.splitlines() if line.startswith("accelerate launch ")]
    assert len(commands) == 3
    for command in commands:
        asked = launch_command_parser().parse_args(command)
        assert asked.module
        assert asked.multi_gpu
        assert find_spec(asked.training_script) is not None


def test_one_process_agrees_with_itself() -> None:
    """World alone says what it is told, and nothing ever ends it."""
    world = ProcessGroup("cpu")
    assert (world.is_main, world.all_gather({"a": 1}), world.take_reports()) == (True, [{"a": 1}], [])
    assert all(world.owns(index) for index in range(4))
    world.check_stop()
    world.leave_run()
    world.close()


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (RewardUnavailable("reward x: timeout", reward="x", code="timeout"), "reward x: timeout"),
        (InvalidInput("model: there is none", field="model"), "model: there is none (here)"),
        (NothingToLearn("25 steps"), "25 steps (here)"),
        (MemoryError("too small"), "MemoryError: too small (here)"),
    ],
)
def test_a_problem_travels_as_json(problem: Exception, message: str) -> None:
    """What the worker tells rewards that are away, callers' mistakes and other errors apart by survives."""
    there = exception_from_json(json.loads(json.dumps(exception_to_json(problem))), "here")
    assert str(there) == message
    assert isinstance(there, type(problem) if isinstance(problem, RewardUnavailable | InvalidInput) else DipoleError)
    for name in ("reward", "code", "field"):
        assert getattr(there, name, None) == getattr(problem, name, None)
