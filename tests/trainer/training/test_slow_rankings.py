"""The loop with a reward that takes its time: groups change places, and no rater is asked twice for one group."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dipole.tiny.world import all_prompts
from dipole_trainer.ranking.groups import CandidateGroup, RankedGroup, RankingBacklog, RewardResult
from dipole_trainer.spec import TrainSpec
from dipole_trainer.storage import job_layout
from dipole_trainer.training import loop, session

LINES = [{"prompt": prompt.text} for prompt in all_prompts(held_out=False)[:6]]


def make_spec(**changes: Any) -> TrainSpec:
    base: dict[str, Any] = {
        "model": "tiny-turbo", "prompts": LINES, "rewards": [{"name": "people", "evaluates": False}], "steps": 6,
        "candidates": 4, "prompts_per_step": 2, "max_staleness": 2, "checkpoint_every": 1, "optimizer": {"lr": 1e-2},
        "method": {"drpo": {"positives": 2, "negatives": 2}}, "samples": {"prompts": 0},
    }  # fmt: skip
    return TrainSpec.model_validate({**base, **changes})


class Raters:
    """A Ranker whose groups are all pending until `choose` picks the next that is ranked, by its brightness."""

    def __init__(self, choose: Callable[[Sequence[str]], str | None]) -> None:
        self.choose = choose
        self.pending: dict[str, CandidateGroup] = {}
        self.asked: dict[str, list[str]] = {}  # group id: hashes of the images that were sent under it, and progress
        self.progress: dict[str, float | None] = {}
        self.withdrawn: list[str] = []

    def takes_latents(self) -> bool:
        return False

    def submit(self, group: CandidateGroup) -> None:
        self.pending[group.id] = group
        if group.asked != frozenset():
            self.progress[group.id] = group.progress
            digest = hashlib.sha256(np.asarray(group.images).tobytes()).hexdigest()
            self.asked.setdefault(group.id, []).append(f"{digest} {group.progress}")

    def collect(self, timeout_s: float) -> RankedGroup | None:
        chosen = self.choose(list(self.pending))
        if chosen is None:
            return None
        group = self.pending.pop(chosen)
        scores = tuple(float(value) for value in np.asarray(group.images).astype(np.float64).mean((1, 2, 3)))
        ranked = {"people": RewardResult(scores=scores, ordinal=True)}
        return RankedGroup(chosen, {} if group.asked == frozenset() else ranked)

    def list_pending(self) -> Mapping[str, RankingBacklog]:
        return {"people": RankingBacklog(dict.fromkeys(self.pending, 1.0), answered=6, per_minute=3.0)}

    def list_unanswered(self) -> dict[str, dict[str, float]]:
        return {}

    def cancel(self, *, withdraw: bool = False) -> None:
        self.withdrawn += list(self.pending) if withdraw else []
        self.pending.clear()

    def close(self) -> None:
        self.cancel()


class Killed(Exception):
    """Stands for kill -9: nothing is written after it."""


def train(
    spec: TrainSpec, workdir: Path, raters: Raters, control: Callable[[], Any] = lambda: "run"
) -> list[tuple[str, dict[str, Any]]]:
    events: list[tuple[str, dict[str, Any]]] = []
    session.run_session(
        spec, job_id="job", workdir=workdir, models_dir=workdir, ranker=raters, control=control,
        on_event=lambda kind, data: events.append((kind, data)),
    )  # fmt: skip
    return events


def steps(events: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    return [data for kind, data in events if kind == "step"]


def oldest(ids: Sequence[str]) -> str | None:
    return ids[0] if ids else None


@pytest.mark.parametrize(
    ("kept", "changes"), [("job.0.1", {}), ("job.0.0.tiny", {"reward_decoder": "tiny", "check_decoder_every": 2})]
)
def test_others_fill_in_for_a_group_that_is_pending(kept: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """A rater who keeps one group to the end holds up no update before its last turn, `max_staleness` steps later; nor
    one who has ranked the VAE's images, and keeps the tiny decoder's of the same group.
    """
    told: list[int] = []

    def keep_one(ids: Sequence[str]) -> str | None:
        others = [each for each in ids if each != kept]
        if others or not ids:
            return oldest(others)
        told.append(1)
        return ids[0] if len(told) > 40 else None

    spec = make_spec(**changes)
    found = steps(train(spec, tmp_path, Raters(keep_one)))
    assert told, "nothing was kept"
    assert [data["filled_in"] for data in found[:3]] == [1, 1, 0]
    assert len(found) == spec.steps
    assert max(data["staleness"] for data in found) <= 2 * spec.max_staleness
    assert all(data["skipped"] == 0 for data in found)


def test_rankings_as_they_were_drawn_fill_nothing_in(tmp_path: Path) -> None:
    """Each group is asked about with the share of updates before its step; evaluations have none, and so compare."""
    held_out = {"prompts": [{"prompt": "a blue circle"}], "images_per_prompt": 2}
    raters = Raters(oldest)
    found = steps(train(make_spec(evaluation=held_out, rewards=[{"name": "people"}]), tmp_path, raters))
    assert raters.progress == {
        **{f"job.{step}.{index}": step / 6 for step in range(6) for index in range(2)},
        **{f"job.eval{step}.0": None for step in (0, 6)},
    }
    assert [data["filled_in"] for data in found] == [0] * 6
    assert [data["staleness"] for data in found] == [0, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("step", [1, 3])
def test_a_run_that_was_killed_asks_raters_for_the_same_images(step: int, tmp_path: Path) -> None:
    """Weights have moved since they were drawn, and yet nobody is given other images under a group's name."""

    def kill() -> str:
        if job_layout.checkpoint_steps(tmp_path)[-1:] == [step]:
            raise Killed
        return "run"

    first, second = Raters(oldest), Raters(oldest)
    with pytest.raises(Killed):
        train(make_spec(), tmp_path, first, kill)
    kept = list(tmp_path.glob(f"*/{job_layout.GROUPS_IN_FLIGHT_FILE}"))
    assert [path.parent.name for path in kept] == [job_layout.checkpoint_name(step)]
    found = steps(train(make_spec(), tmp_path, second))
    assert [data["step"] for data in found] == list(range(step + 1, 7))
    both = first.asked.keys() & second.asked.keys()
    assert {f"job.{step}.0", f"job.{step + 1}.1"} <= both
    assert all(second.asked[name] == first.asked[name] for name in both)


def test_an_evaluation_leaves_what_is_in_flight_alone(tmp_path: Path) -> None:
    """Each group is asked once, though every step is evaluated; evaluations ask no people who are to be left out."""
    held_out = {"prompts": [{"prompt": "a blue circle"}], "images_per_prompt": 2, "every": 1}
    raters = Raters(oldest)
    events = train(make_spec(evaluation=held_out), tmp_path, raters)
    assert len([kind for kind, _ in events if kind == "evaluation"]) == 7
    assert sorted(raters.asked) == sorted(f"job.{step}.{index}" for step in range(6) for index in range(2))
    assert all(len(sent) == 1 for sent in raters.asked.values())


def test_a_wait_for_people_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is waited for, how many groups, since when, and until when by the rate so far."""
    monkeypatch.setattr(loop, "FIRST_PENDING_REPORT_S", 0.0)
    looks: list[int] = []

    def think_first(ids: Sequence[str]) -> str | None:
        looks.append(1)
        return oldest(ids) if len(looks) > 20 else None

    events = train(make_spec(steps=1, max_staleness=0), tmp_path, Raters(think_first))
    told = [data for kind, data in events if kind == "rankings_pending"]
    assert told[0] == {
        "step": 0, "reward": "people", "groups": 2, "step_groups": 2, "oldest_s": 1.0, "per_minute": 3.0,
        "expected_s": 40.0,
    }  # fmt: skip


def test_a_job_that_is_cancelled_withdraws_what_is_pending(tmp_path: Path) -> None:
    """One that is paused does not: it will ask again."""
    for asked, expected in (("pause", []), ("cancel", ["job.0.0", "job.0.1"])):
        looks: list[int] = []

        def control(asked: str = asked, looks: list[int] = looks) -> str:
            looks.append(1)
            return asked if len(looks) > 3 else "run"

        raters = Raters(lambda ids: None)
        train(make_spec(max_staleness=0), tmp_path / asked, raters, control)
        assert raters.withdrawn == expected


def test_groups_that_fill_in_have_the_same_gradient_whether_their_graphs_are_kept(tmp_path: Path) -> None:
    """Every step's loss and the last weights agree to the last bit, of a run that keeps graphs and one that draws each
    sample again: the graphs of a group that changes places are of other weights, and let go.
    """
    found = {}
    for memory in ("auto", "lean"):
        told: list[int] = []

        def keep_one(ids: Sequence[str], told: list[int] = told) -> str | None:
            others = [each for each in ids if each != "job.0.1"]
            told.append(1)
            return oldest(others) or (oldest(ids) if len(told) > 60 else None)

        (folder := tmp_path / memory).mkdir()
        done = steps(train(make_spec(memory=memory), folder, Raters(keep_one)))
        weights = load_file(next((folder / job_layout.checkpoint_name(6)).rglob("adapter_model.safetensors")))
        found[memory] = ([step["loss"] for step in done], weights)
        assert sum(step["filled_in"] for step in done) > 0
        assert (sum(step["graphs_kept"] for step in done) > 0) == (memory == "auto")
    assert found["auto"][0] == found["lean"][0]
    assert all(torch.equal(value, found["lean"][1][name]) for name, value in found["auto"][1].items())
