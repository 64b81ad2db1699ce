"""Trackers get the numbers of the job's events, go on in the same run, and cost a run nothing when they fail."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dipole.protocol.images import decode_image
from dipole_trainer.ranking.in_process import InProcessRanker
from dipole_trainer.spec import TrainSpec
from dipole_trainer.storage import job_layout
from dipole_trainer.trackers import figures, reporter
from dipole_trainer.training import session

Events = list[tuple[str, dict[str, Any]]]
JOB = "ftjob-0123456789abcdef"


def make_spec(**changes: Any) -> TrainSpec:
    base: dict[str, Any] = {
        "model": "tiny-turbo", "prompts": [{"prompt": "a red circle"}], "steps": 5, "candidates": 4,
        "prompts_per_step": 1, "method": {"type": "sft"}, "samples": {"prompts": 2},
        "rewards": [{"name": "bright", "options": {}}, {"name": "dark", "weight": 0}],
        "report_to": ["tensorboard", "trackio"],
        "evaluation": {"every": 2, "prompts": [{"prompt": "a cross"}, {"prompt": "a circle"}], "images_per_prompt": 2},
    }  # fmt: skip
    return TrainSpec.model_validate({**base, **changes})


def brightness(prompt: str, images: np.ndarray, metadata: Any) -> list[float]:
    return [float(value) for value in images.astype(np.float64).mean((1, 2, 3))]


def darkness(prompt: str, images: np.ndarray, metadata: Any) -> list[float]:
    return [-value for value in brightness(prompt, images, metadata)]


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Events]:
    """The folder and the events of a job that was paused after three steps and went on, and then ended."""
    workdir, spec = tmp_path_factory.mktemp("tracked"), make_spec()
    events: Events = []
    third = workdir / job_layout.checkpoint_name(3)

    def run(control: Any) -> str:
        ranker = InProcessRanker({"bright": brightness, "dark": darkness}, spec.rewards)
        return session.run_session(
            spec, job_id=JOB, workdir=workdir, models_dir=workdir, ranker=ranker, control=control,
            on_event=lambda kind, data: events.append((kind, data)),
        )  # fmt: skip

    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("TRACKIO_", "WANDB_", "MLFLOW_"))]:
            patch.delenv(name)
        for name in ("FINISH_TIMEOUT_S", "STOP_TIMEOUT_S", "SILENT_S"):
            patch.setattr(reporter, name, 200.0)  # of busy machines
        paused = run(lambda: "pause" if sum(kind == "step" for kind, _ in events) == 3 else "run")
        assert (paused, third.is_dir()) == ("paused", True)
        assert run(lambda: "run") == "succeeded"
    assert [data for kind, data in events if kind == "warning"] == []
    return workdir, events


def expected_points(workdir: Path, events: Events) -> dict[str, dict[int, float]]:
    """What a tracker ought to show: by curve, by step."""
    units = figures.measure_units(workdir) or {}
    found: dict[str, dict[int, float]] = {}
    for kind, data in events:
        has_units = data.get("step", 0) >= figures.FIRST_STEPS
        for name, value in figures.to_scalars(kind, data, units if has_units else {}).items():
            found.setdefault(name, {})[data["step"]] = value
    return found


def test_names_are_of_every_figure_of_the_events(tracked: tuple[Path, Events]) -> None:
    """Rewards trained and held out, raw and normalised, spread, loss, rate, times, scores with intervals, diversity."""
    points = expected_points(*tracked)
    for name in (
        "train/rewards/bright", "train/rewards/dark", "train/normalised/bright", "train/spread/dark", "train/loss",
        "train/images_per_s", "train/seconds/wait", "train/lr", "evaluation/scores/dark/mean",
        "evaluation/scores/bright/low", "evaluation/scores/dark/difference/mean", "evaluation/normalised/dark",
        "evaluation/diversities/Vendi/mean", "evaluation/diversity",
    ):  # fmt: skip
        assert name in points
    assert set(points["train/loss"]) == {1, 2, 3, 4, 5}
    assert set(points["train/normalised/bright"]) == {3, 4, 5}
    assert set(points["evaluation/scores/dark/mean"]) == {0, 2, 4, 5}
    start = np.mean([points["train/rewards/bright"][step] for step in (1, 2, 3)])
    spread = np.mean([points["train/spread/bright"][step] for step in (1, 2, 3)])
    assert points["train/normalised/bright"][5] == pytest.approx((points["train/rewards/bright"][5] - start) / spread)


def test_tensorboard_has_the_numbers_of_the_events_in_one_run(tracked: tuple[Path, Events]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    workdir, events = tracked
    (folder,) = (workdir / "trackers/tensorboard").iterdir()
    assert folder.name == JOB
    assert len(list(folder.iterdir())) == 2, "one file a session"
    read = EventAccumulator(str(folder), size_guidance={"images": 0})
    read.Reload()
    found = {tag: {each.step: each.value for each in read.Scalars(tag)} for tag in read.Tags()["scalars"]}
    expected = expected_points(workdir, events)
    assert found.keys() == expected.keys()
    for name, points in expected.items():
        assert found[name] == pytest.approx(points, rel=1e-5), name
    assert [each.step for each in read.Images("samples")] == sorted(
        {data["step"] for kind, data in events if kind == "samples"}
    )
    told = read.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| optimizer.lr | 0.0001 |" in told
    assert "| rewards.dark.weight | 0.0 |" in told
    exported = read.Tensors("export/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "export/pytorch_lora_weights.safetensors" in exported


def test_trackio_has_the_numbers_of_the_events_in_one_run(tracked: tuple[Path, Events]) -> None:
    workdir, events = tracked
    folder = workdir / "trackers/trackio"
    with closing(sqlite3.connect(folder / "dipole.db")) as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics").fetchall()
    assert {name for name, _, _ in rows} == {JOB}
    found: dict[str, dict[int, Any]] = {}
    for _, step, text in rows:
        for name, value in json.loads(text).items():
            found.setdefault(name, {})[step] = value
    pictures = found.pop("samples")
    expected = expected_points(workdir, events)
    assert found == expected
    assert set(pictures) == {data["step"] for kind, data in events if kind == "samples"}
    shown = sorted(folder.rglob("*.png"))
    sizes = {decode_image(path.read_bytes(), "image/png").shape for path in shown}
    assert len(shown) == len(pictures)
    assert len(sizes) == 2, "the base alone, and steps with the base beside them"


# ---- a tracker that does not do as it should ------------------------------------------------------------------------


def report_with(
    command: Sequence[str], workdir: Path, *, events: int, silent_s: float = 60.0, finish_timeout_s: float = 30.0
) -> tuple[Events, float]:
    """What a session's events become where `command` is the tracker; and the seconds that reporting them took."""
    told: Events = []
    with reporter.report_to_trackers(
        make_spec(report_to="tensorboard"), JOB, workdir, lambda kind, data: told.append((kind, data)),
        command=command, silent_s=silent_s, finish_timeout_s=finish_timeout_s,
    ) as on_event:  # fmt: skip
        began = time.monotonic()
        for step in range(1, events + 1):
            on_event("step", {"step": step, "steps": events, "loss": 0.5})
        seconds = time.monotonic() - began
    return told, seconds


def program(text: str) -> list[str]:
    return [sys.executable, "-S", "-c", text]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import time; time.sleep(600)", "did not finish within 0.5 s"),
        ("import sys; sys.exit(3)", "ended with code 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended with code -9"),
        ('import sys; print(\'{"failed": "no such server"}\', flush=True); sys.stdin.read()', "no such server"),
    ],
)
def test_a_tracker_that_hangs_or_fails_costs_one_warning(tmp_path: Path, text: str, why: str) -> None:
    """All of the session's events go on in their order, and it ends."""
    slow = "sleep" in text
    told, _ = report_with(program(text), tmp_path, events=5, finish_timeout_s=0.5 if slow else 30.0)
    assert [data["step"] for kind, data in told if kind == "step"] == [1, 2, 3, 4, 5]
    (warning,) = [data["warning"] for kind, data in told if kind == "warning"]
    assert why in warning
    assert "report_to" in warning
    assert "tensorboard" in warning


def test_a_tracker_that_takes_nothing_is_left_behind(tmp_path: Path) -> None:
    """More reports than it may have waiting: they are dropped, and nobody waits for room."""
    told, _ = report_with(
        program("import time; time.sleep(600)"), tmp_path, events=4 * reporter.MAX_WAITING, finish_timeout_s=0.5
    )
    assert len([1 for kind, _ in told if kind == "step"]) == 4 * reporter.MAX_WAITING
    assert "reports behind" in next(data["warning"] for kind, data in told if kind == "warning")


def test_a_silent_tracker_is_told_of_while_the_run_goes_on(tmp_path: Path) -> None:
    told, _ = report_with(
        program("import time; time.sleep(600)"), tmp_path, events=3, silent_s=0.0, finish_timeout_s=0.5
    )
    kinds = [kind for kind, _ in told]
    assert kinds == ["step", "warning", "step", "step"]
    assert "has not answered" in told[1][1]["warning"]


def test_a_tracker_that_raises_is_told_by_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real process, where TensorBoard can make no folder: it says so, and the session has ended all the same."""
    (tmp_path / "trackers").mkdir()
    (tmp_path / "trackers/tensorboard").write_text("a file")
    told, _ = report_with(reporter.COMMAND, tmp_path, events=2, finish_timeout_s=200.0)
    (warning,) = [data["warning"] for kind, data in told if kind == "warning"]
    assert "starting failed: FileExistsError" in warning


def test_what_is_not_installed_is_a_warning_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporter, "list_installed_trackers", lambda: [])
    told, _ = report_with(program("raise SystemExit"), tmp_path, events=2)
    assert [kind for kind, _ in told] == ["step", "warning", "step"]
    assert "pip install tensorboard" in told[1][1]["warning"]


def test_a_trackers_process_knows_no_secret_of_ours_and_none_phones_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has its own keys, and W&B is offline where it has none; it takes part in no group of processes."""
    monkeypatch.setenv("DIPOLE_SECRETS_KEY", "secret")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    text = "import json, os, sys; json.dump(dict(os.environ), open('env.json', 'w')); sys.stdin.read()"
    report_with(program(text), tmp_path, events=1)
    seen = json.loads((tmp_path / "trackers/env.json").read_text())
    assert "DIPOLE_SECRETS_KEY" not in seen
    assert "WORLD_SIZE" not in seen
    assert seen["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:9"
    assert seen["WANDB_MODE"] == "offline"
    assert seen["MLFLOW_DISABLE_TELEMETRY"] == "true"
    monkeypatch.setenv("WANDB_API_KEY", "key")
    report_with(program(text), tmp_path, events=1)
    assert "WANDB_MODE" not in json.loads((tmp_path / "trackers/env.json").read_text())


def test_settings_leave_out_prompts_and_addresses() -> None:
    spec = make_spec(rewards=[{"name": "bright", "url": "http://127.0.0.1:8400/secret"}])
    config = figures.describe_config(spec)
    assert config["prompts"] == 1
    assert config["evaluation.prompts"] == 2
    assert config["rewards.bright.weight"] == 1.0
    assert "secret" not in json.dumps(config)
    assert "red circle" not in json.dumps(config)


def test_one_name_is_a_list_of_it() -> None:
    assert make_spec(report_to="mlflow").report_to == ("mlflow",)
    assert make_spec(report_to=["wandb", "wandb", "trackio"]).report_to == ("wandb", "trackio")
    with pytest.raises(ValueError, match="report_to"):
        make_spec(report_to="aim")
