"""`make chaos`, shortly: a few faults on the real processes, with SQLite. The half hour is not for every commit."""

from __future__ import annotations

import json

import pytest

from ..chaos.experiment import Options, run_experiment
from ..chaos.schedule import KINDS, PROCESSES, plan_faults


def test_a_schedule_follows_from_its_seed_alone() -> None:
    """The same seed gives the same faults, another one others, of every kind, and never two at a time of one target."""
    plan = plan_faults(1, 1800, mean_gap_s=7.5)
    assert plan == plan_faults(1, 1800, mean_gap_s=7.5)
    assert plan != plan_faults(2, 1800, mean_gap_s=7.5)
    assert len(plan) >= 200
    assert {fault.kind for fault in plan} == {kind.name for kind in KINDS}
    assert {fault.target for fault in plan if fault.kind == "kill"} == set(PROCESSES)
    ends: dict[str, float] = {}
    for fault in plan:
        assert fault.at_s >= ends.get(fault.target, 0.0), fault
        ends[fault.target] = fault.at_s + fault.seconds
    assert [fault.number for fault in plan] == list(range(1, len(plan) + 1))


def test_what_a_machine_cannot_do_is_not_planned() -> None:
    """A kind, or a kind for one of its targets; the table tells of both."""
    impossible = {"clock-jump": "no libfaketime", "disk-full home": "no root"}
    plan = plan_faults(1, 1800, mean_gap_s=7.5, impossible=impossible)
    assert "clock-jump" not in {fault.kind for fault in plan}
    assert "home" not in {fault.target for fault in plan}


def test_a_short_disturbance_loses_nothing(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every fault is recorded and done, jobs end meanwhile, and every property of the checker holds."""
    folder = tmp_path_factory.mktemp("chaos")
    options = Options(
        seed=3, seconds=12, mean_gap_s=1.5, database="sqlite", jobs_at_once=1, images=False, compared=("sync-drpo",)
    )
    verdict = run_experiment(options, folder, lambda *_: None)
    told = [f"{each.kind}: {each.where}: {each.what}" for each in verdict.violations]
    assert told == []
    records = [json.loads(line) for line in (folder / "faults.jsonl").read_text().splitlines()]
    assert len(records) == len(verdict.evidence.faults) >= 5
    assert [each["error"] for each in records if each["error"]] == []
    assert {job.state for job in verdict.evidence.jobs if job.key != "undisturbed-sync-drpo"} >= {"succeeded"}
