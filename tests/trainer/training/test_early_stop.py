"""A job that stops itself: brightness is trained on, and darkness held out, so that hacking is certain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dipole.protocol.job_events import describe_event
from dipole.tiny.world import all_prompts
from dipole_trainer.ranking.in_process import InProcessRanker
from dipole_trainer.spec import TrainSpec
from dipole_trainer.storage import job_layout
from dipole_trainer.training import session

HELD_OUT = [{"prompt": prompt.text} for prompt in all_prompts(held_out=True)[:6]]


def make_spec(**changes: Any) -> TrainSpec:
    base: dict[str, Any] = {
        "model": "tiny-turbo", "prompts": [{"prompt": "a red circle"}, {"prompt": "two squares"}], "steps": 40,
        "candidates": 4, "prompts_per_step": 2, "optimizer": {"lr": 5e-3}, "method": {"type": "sft"},
        "rewards": [{"name": "bright"}, {"name": "dark", "weight": 0}], "keep_checkpoints": 1, "checkpoint_every": 100,
        "evaluation": {"every": 2, "prompts": HELD_OUT, "images_per_prompt": 2}, "samples": {"prompts": 2, "every": 0},
        "stop_on": "hacking",
    }  # fmt: skip
    return TrainSpec.model_validate({**base, **changes})


def brightness(prompt: str, images: np.ndarray, metadata: Any) -> list[float]:
    return [float(value) for value in images.astype(np.float64).mean((1, 2, 3))]


def darkness(prompt: str, images: np.ndarray, metadata: Any) -> list[float]:
    return [-value for value in brightness(prompt, images, metadata)]


def train(spec: TrainSpec, workdir: Path) -> list[tuple[str, dict[str, Any]]]:
    """The events of a session that ends by itself."""
    events: list[tuple[str, dict[str, Any]]] = []
    outcome = session.run_session(
        spec,
        job_id="job",
        workdir=workdir,
        models_dir=workdir,
        ranker=InProcessRanker({"bright": brightness, "dark": darkness}, spec.rewards),
        on_event=lambda kind, data: events.append((kind, data)),
        control=lambda: "run",
    )
    assert outcome == "succeeded"
    return events


def of_kind(events: list[tuple[str, dict[str, Any]]], kind: str) -> list[dict[str, Any]]:
    return [data for name, data in events if name == kind]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, dict[str, Any]]]]:
    workdir = tmp_path_factory.mktemp("stopped")
    return workdir, train(make_spec(), workdir)


def test_a_job_that_hacks_its_reward_stops_and_keeps_the_step_before(
    stopped: tuple[Path, list[tuple[str, dict[str, Any]]]],
) -> None:
    """It trains no further, says why and what it kept, and that is the only checkpoint, exported with its pictures."""
    workdir, events = stopped
    (stop,) = of_kind(events, "stopped_early")
    found = [data["step"] for data in of_kind(events, "reward_hacking")]
    assert len(found) >= 2
    assert stop["step"] == found[-1] == of_kind(events, "step")[-1]["step"] < 40
    assert found[-2] == found[-1] - 2
    text, level = describe_event("stopped_early", stop)
    assert level == "warn"
    assert f"Stopped at step {stop['step']} of 40" in text
    assert f"step {stop['kept']}" in text
    assert "as dark" in text
    assert stop["kept"] <= found[0]
    assert job_layout.checkpoint_steps(workdir) == [stop["kept"]]
    assert {data["step"] for data in of_kind(events, "export")} == {stop["kept"]}
    assert of_kind(events, "checkpoint")[-1] == {"step": stop["kept"], "path": f"checkpoint-{stop['kept']}"}
    assert f"| {stop['kept']} of 2 prompts" in (workdir / "export/README.md").read_text()


def test_a_stop_is_found_again_by_whoever_goes_on(stopped: tuple[Path, list[Any]], tmp_path: Path) -> None:
    """A process that dies between its last evaluation and the export leaves it to the next, which trains no step."""
    (stop,) = of_kind(stopped[1], "stopped_early")
    killed = tmp_path / "killed"

    class Killed(Exception):
        pass

    def die(kind: str, data: dict[str, Any]) -> None:
        if kind == "stopped_early":
            raise Killed

    with pytest.raises(Killed):
        session.run_session(
            make_spec(), job_id="job", workdir=killed, models_dir=killed, on_event=die, control=lambda: "run",
            ranker=InProcessRanker({"bright": brightness, "dark": darkness}, make_spec().rewards),
        )  # fmt: skip
    again = train(make_spec(), killed)
    assert of_kind(again, "stopped_early") == [stop]
    assert of_kind(again, "step") == []


def test_a_job_that_may_not_stop_says_once_where_it_would_have(
    stopped: tuple[Path, list[tuple[str, dict[str, Any]]]], tmp_path: Path
) -> None:
    """It trains to its end, on the same numbers."""
    (stop,) = of_kind(stopped[1], "stopped_early")
    steps = stop["step"] + 1
    events = train(make_spec(stop_on=None, steps=steps), tmp_path)
    assert of_kind(events, "stopped_early") == []
    assert of_kind(events, "step")[-1]["step"] == steps
    (warning,) = of_kind(events, "warning")
    text, level = describe_event("warning", warning)
    assert f"would have stopped at step {stop['step']}, " in text
    assert (stop["reason"] in text, level) == (True, "warn")
