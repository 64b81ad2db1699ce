"""Every job has pictures and curves: of held-out prompts, or of its own and said so; they can be off."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dipole.tiny.world import all_prompts
from dipole_trainer.evaluation import curves, pictures, results
from dipole_trainer.evaluation.figure_texts import pluralize_count
from dipole_trainer.ranking.forwarding.decoder_check import MIN_TAU
from dipole_trainer.ranking.groups import CandidateGroup
from dipole_trainer.ranking.in_process import InProcessRanker
from dipole_trainer.spec import TrainSpec
from dipole_trainer.storage.metrics_log import MetricsLog
from dipole_trainer.training import session

LINES = [{"prompt": prompt.text, "metadata": prompt.metadata} for prompt in all_prompts(held_out=False)[:6]]
HELD_OUT = {"prompts": LINES[4:], "images_per_prompt": 2}


def make_spec(**changes: Any) -> TrainSpec:
    base: dict[str, Any] = {
        "prompts": LINES[:2], "steps": 2, "candidates": 4, "prompts_per_step": 1, "chunk_size": 4,
        "rewards": [{"name": "bright"}, {"name": "dark", "weight": 0}], "optimizer": {"lr": 1e-3},
        "samples": {"every": 1}, "evaluation": {"images_per_prompt": 2},
    }  # fmt: skip
    return TrainSpec.model_validate({**base, **changes})


def brightness(prompt: str, images: np.ndarray, metadata: Any) -> list[float]:
    return [float(value) for value in images.astype(np.float64).mean((1, 2, 3))]


class Asked(InProcessRanker):
    """Notes the groups that rewards are asked about."""

    def __init__(self, spec: TrainSpec) -> None:
        super().__init__({"bright": brightness, "dark": lambda *group: [-v for v in brightness(*group)]}, spec.rewards)
        self.groups: list[CandidateGroup] = []

    def submit(self, group: CandidateGroup) -> None:
        self.groups.append(group)
        super().submit(group)


def train(spec: TrainSpec, folder: Path, control: Any = lambda: "run") -> tuple[Asked, list[tuple[str, Any]]]:
    told: list[tuple[str, Any]] = []
    ranker = Asked(spec)
    session.run_session(
        spec, job_id="job", workdir=folder, models_dir=folder, ranker=ranker,
        on_event=lambda *event: told.append(event), control=control,
    )  # fmt: skip
    return ranker, told


def samples(told: list[tuple[str, Any]]) -> list[Mapping[str, Any]]:
    return [data for kind, data in told if kind == "samples"]


def test_a_job_without_held_out_prompts_shows_its_own_and_says_so(tmp_path: Path) -> None:
    """Before, on the way and after, with the same noises; no reward is asked about them, and nothing is scored."""
    spec = make_spec()
    ranker, told = train(spec, tmp_path)
    assert [(data["step"], data["of"], data["scores"]) for data in samples(told)] == [
        (step, "training", {}) for step in (0, 1, 2)
    ]
    assert not [kind for kind, _ in told if kind == "evaluation"]
    assert not [group.id for group in ranker.groups if ".eval" in group.id]
    report = pictures.build_sample_report(tmp_path, spec, 0, 2)
    assert (report["prompt_kind"], report["remark"]) == ("training prompt", ", none held out")
    assert [prompt["prompt"] for prompt in report["prompts"]] == [line["prompt"] for line in LINES[:2]]
    card = (tmp_path / "export/README.md").read_text()
    assert "](samples.png)" in card


def test_held_out_prompts_have_points_of_every_reward(tmp_path: Path) -> None:
    """The evaluation's own prompts and noises: a point at its steps is a part of it, and costs nothing more."""
    spec = make_spec(evaluation=HELD_OUT, samples={"every": 1, "prompts": 1})
    ranker, told = train(spec, tmp_path)
    found = samples(told)
    assert [(data["step"], data["of"]) for data in found] == [(step, "held_out") for step in (0, 1, 2)]
    assert all({"bright", "dark"} <= data["scores"].keys() for data in found)
    assert [data["step"] for kind, data in told if kind == "evaluation"] == [0, 2]
    asked = [group.id for group in ranker.groups if ".eval" in group.id]
    assert asked == ["job.eval0.0", "job.eval0.1", "job.eval1.0", "job.eval2.0", "job.eval2.1"]
    evaluated = json.loads((tmp_path / "evaluation/step-2.json").read_text())
    point = json.loads((tmp_path / "samples/step-2.json").read_text())
    assert point["prompts"] == evaluated["prompts"][:1]


def test_the_first_picture_is_the_base_and_stays_the_same_between_runs(tmp_path: Path) -> None:
    """A run that was stopped draws no picture twice, and its curves have each step once."""
    asked = iter(["run"] * 3 + ["pause"] * 200)
    spec = make_spec(steps=3, checkpoint_every=1)
    train(spec, tmp_path, lambda: next(asked))
    base = (tmp_path / "samples/step-0.png").read_bytes()
    train(spec, tmp_path)
    assert (tmp_path / "samples/step-0.png").read_bytes() == base
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert pictures.sampled_steps(tmp_path) == [0, 1, 2, 3]


def test_pictures_can_be_turned_off(tmp_path: Path) -> None:
    _, told = train(make_spec(samples={"prompts": 0}), tmp_path)
    assert samples(told) == []
    assert not (tmp_path / "samples").exists()
    assert not list((tmp_path / "export").glob("*.png"))


def test_pictures_change_no_weight(tmp_path: Path) -> None:
    """Without windows drawn ahead: training draws the same with them and without."""
    for name, every in (("often", {"every": 1}), ("never", {"prompts": 0})):
        train(make_spec(samples=every), tmp_path / name)
    weights = [next((tmp_path / name).glob("checkpoint-2/*/adapter_model.safetensors")) for name in ("often", "never")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_sheet_reads_back_as_it_was_written(tmp_path: Path) -> None:
    drawn = list(np.random.default_rng(0).integers(0, 256, (3, 2, 8, 8, 3), dtype=np.uint8))
    results.write_sample_sheet(tmp_path, 5, drawn, ["a", "b", "c"])
    assert np.array_equal(np.stack(results.read_sample_sheet(tmp_path, 5)), np.stack(drawn))


def test_a_sheet_is_read_while_the_next_is_written(tmp_path: Path) -> None:
    """A tracker that is behind draws an earlier step's meanwhile: never half a file."""
    drawn = list(np.random.default_rng(0).integers(0, 256, (3, 2, 8, 8, 3), dtype=np.uint8))
    results.write_sample_sheet(tmp_path, 0, drawn, ["a", "b", "c" * 100_000])
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(
            lambda: [results.write_sample_sheet(tmp_path, n, drawn, ["a", "b", "c" * 100_000]) for n in range(300)]
        )
        while not writing.done():
            assert np.array_equal(np.stack(results.read_sample_sheet(tmp_path, 0)), np.stack(drawn))
        writing.result()


def test_a_line_that_a_crash_cut_short_is_dropped(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    for step in (1, 2, 3):
        log.append_step({"step": step})
    log.path.write_text(log.path.read_text() + '{"step": 4, "lo')
    log.remove_steps_after(2)
    assert log.path.read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize("points", [0, 1, 3])
def test_curves_are_drawn_of_whatever_there_is(points: int, tmp_path: Path) -> None:
    """Of no update and one point as of many, and of rewards whose scores are all the same."""
    updates = [
        {"step": step, "rewards": {"r": 0.5}, "spread": {"r": 0.0}, "loss": 0.1 * step,
         "seconds": {"generate": 1, "wait": 2, "update": 3}} for step in range(1, points)
    ]  # fmt: skip
    figure = {"mean": 1.0, "low": 1.0, "high": 1.0, "prompts": 2}
    known = [
        {"step": step, "of": "training", "prompts": [{"scores": {"r": [0.5]}}] * 2,
         "scores": {"r": {**figure, **({"difference": figure} if step else {})}}, "diversities": {"distance": figure}}
        for step in range(points)
    ]  # fmt: skip
    curves.draw_curves(curves.Run(updates, known, watched=set()), tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (1800, 684)


def test_a_tiny_decoder_s_agreement_has_a_panel_of_its_own(tmp_path: Path) -> None:
    """Of the updates that compared, and one column more for it."""
    updates = [{"step": step, "rewards": {}, "spread": {}, "seconds": {}} for step in (1, 2, 3)]
    updates[1] |= {"decoder_tau": 0.9, "decoder_overlap": 0.75}
    run = curves.Run(updates, [], watched=set())
    curves.draw_curves(run, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (2250, 684)
    axis = Figure().subplots()
    curves.draw_decoder(axis, run)
    assert [list(line.get_xydata()[0]) for line in axis.lines[:2]] == [[2, 0.9], [2, 0.75]]
    assert axis.lines[2].get_ydata()[0] == MIN_TAU


def test_a_running_mean_leaves_out_what_is_missing() -> None:
    assert curves.running_mean([1.0, None, 3.0], width=2) == [1.0, 1.0, 3.0]
    assert np.isnan(curves.running_mean([None])[0])
    assert pluralize_count(2, "training prompt") == "2 training prompts"
