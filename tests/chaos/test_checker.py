"""The checker on bent evidence: each kind of violation is found where it is, and a right run has none."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from . import checker
from .checker import find_violations
from .clients import Told
from .digest_reward import score_of_digest
from .evidence import Event, Evidence, Folder, Group, Job, Ranking

DIGESTS = ("ab" * 32, "cd" * 32)
RIGHT_SCORES = tuple(map(score_of_digest, DIGESTS))
HISTORY: list[tuple[str, dict[str, Any]]] = [
    ("created", {}),
    ("queued", {}),
    ("running", {"fence": 1}),
    ("step", {"step": 1}),
    ("checkpoint", {"step": 1}),
    ("step", {"step": 2}),
    ("lease_expired", {}),
    ("running", {"fence": 2}),
    ("resumed", {"step": 1}),
    ("checkpoint", {"step": 1}),
    ("step", {"step": 2}),
    ("checkpoint", {"step": 2}),
    ("export", {"step": 2}),
    ("succeeded", {}),
]


def right_evidence() -> Evidence:
    """Two jobs of one spec, of which the second lost a worker after its second step."""
    jobs = [Job(name, f"key-{name}", "succeeded", 2, 2, "sync-drpo") for name in ("reference", "job")]
    events = [
        Event(100 * place + index, job.id, kind, data)
        for place, job in enumerate(jobs)
        for index, (kind, data) in enumerate(HISTORY)
    ]
    groups = [Group(job.id, "JOB.0.0", 0, "a cat", (1, 2), DIGESTS, {"digest": Ranking(RIGHT_SCORES)}) for job in jobs]
    told = Told()
    for job in jobs:
        told.creates.append((f"key-{job.id}", job.id))
        told.streams[job.id] = [event.id for event in events if event.job == job.id]
    told.images.extend([(0, "one"), (0, "one"), (1, "other")])
    folder = Folder({1: "early", 2: "late"}, (1, 2))
    checkpoints = [(job.id, step) for job in jobs for step in (1, 2)]
    folders = {job.id: folder for job in jobs}
    return Evidence(jobs, events, checkpoints, groups, folders, told, {"sync-drpo": "reference"})


def bend_job(**changes: Any) -> Callable[[Evidence], Evidence]:
    return lambda right: replace(right, jobs=[right.jobs[0], replace(right.jobs[1], **changes)])


def bend_folder(**changes: Any) -> Callable[[Evidence], Evidence]:
    return lambda right: replace(right, folders={**right.folders, "job": replace(right.folders["job"], **changes)})


def bend_group(**changes: Any) -> Callable[[Evidence], Evidence]:
    return lambda right: replace(right, groups=[right.groups[0], replace(right.groups[1], **changes)])


def bend_history(place: int, *instead: tuple[str, dict[str, Any]]) -> Callable[[Evidence], Evidence]:
    """The second job's event number `place` is others; its stream told the same."""

    def bend(right: Evidence) -> Evidence:
        history = [*HISTORY[:place], *instead, *HISTORY[place + 1 :]]
        events = [Event(100 + index, "job", kind, data) for index, (kind, data) in enumerate(history)]
        right.told.streams["job"] = [event.id for event in events]
        return replace(right, events=[event for event in right.events if event.job != "job"] + events)

    return bend


def bend_told(bend: Callable[[Told], object]) -> Callable[[Evidence], Evidence]:
    def bend_evidence(right: Evidence) -> Evidence:
        bend(right.told)
        return right

    return bend_evidence


def ranked(scores: Any, **more: Any) -> dict[str, Ranking]:
    return {"digest": Ranking(scores, **more)}


BENT: dict[str, tuple[str, Callable[[Evidence], Evidence]]] = {
    "a job that was answered is not there": ("job lost", lambda right: replace(right, jobs=right.jobs[:1])),
    "a key was answered with two jobs": (
        "job made twice", bend_told(lambda told: told.creates.append(("key-job", "reference")))
    ),
    "two rows have one key": ("job made twice", bend_job(key="key-reference")),
    "a job never ends": ("job not as wished", bend_job(state="running")),
    "a job waits for good": ("job not as wished", bend_job(state="paused")),
    "a job failed": ("job not as wished", bend_job(state="failed", error="it was not its fault")),
    "a job was cancelled unasked": ("job not as wished", bend_job(state="cancelled")),
    "a claim is not told": ("job run twice", bend_job(fence=3)),
    "two hold it": ("job run twice", bend_history(6)),
    "somebody without a lease writes": ("job run twice", bend_history(6, *HISTORY[6:7], ("step", {"step": 3}))),
    "it ends twice": ("job run twice", bend_history(13, ("succeeded", {}), ("succeeded", {}))),
    "it goes on after its end": ("job run twice", bend_history(13, ("succeeded", {}), ("running", {"fence": 3}))),
    "a step is made twice": ("update twice", bend_history(10, ("step", {"step": 2}), ("step", {"step": 2}))),
    "a step is left out": ("update twice", bend_history(10, ("step", {"step": 3}))),
    "an old checkpoint is taken": ("work lost", bend_history(8, ("resumed", {"step": 0}), ("step", {"step": 1}))),
    "it begins anew": ("work lost", bend_history(8, ("step", {"step": 1}))),
    "the last checkpoint is not told": ("update lost", bend_history(11)),
    "a score is another's": ("ranking made up", bend_group(rankings=ranked(RIGHT_SCORES[::-1]))),
    "a failure is told as 0": ("ranking made up", bend_group(rankings=ranked((RIGHT_SCORES[0], 0.0)))),
    "a score is missing": ("ranking made up", bend_group(rankings=ranked(RIGHT_SCORES[:1]))),
    "a group is not in the ledger": ("ranking lost", lambda right: replace(right, groups=right.groups[:1])),
    "a null without a reason": ("no reason", bend_group(rankings=ranked((RIGHT_SCORES[0], None)))),
    "a stream misses an event": ("events with a gap", bend_told(lambda told: told.streams["job"].pop(3))),
    "a stream tells one twice": ("events with a gap", bend_told(lambda told: told.streams["job"].insert(3, 102))),
    "a stream tells of what was never": ("events with a gap", bend_told(lambda told: told.streams["job"].append(999))),
    "a stream ends early": ("events with a gap", bend_told(lambda told: told.streams["job"].pop())),
    "a checkpoint has no files": ("checkpoint without files", bend_folder(weights={2: "late"})),
    "a file is broken": ("file unreadable", bend_folder(unreadable=["checkpoint-2: not JSON"])),
    "a step is logged twice": ("log of steps", bend_folder(logged_steps=(1, 1, 2))),
    "a half file is left": ("file unfinished", bend_folder(unfinished=[".checkpoint-2.partial"])),
    "other weights": ("other weights", bend_folder(weights={1: "early", 2: "a bit off"})),
    "other candidates": (
        "other candidates", bend_group(candidates=DIGESTS[::-1], rankings=ranked(RIGHT_SCORES[::-1]))
    ),
    "a caller is blamed": ("wrong answer", bend_told(lambda told: told.wrong_answers.append("POST: 500"))),
    "a process logs what it did not expect": (
        "unhandled error", lambda right: replace(right, unhandled=["api-1.log: request_failed: KeyError: 'x'"])
    ),
    "a seed gives another image": ("other image", bend_told(lambda told: told.images.append((0, "other")))),
}  # fmt: skip


def test_a_right_run_has_no_violation() -> None:
    """A job that was taken over, and repeated a step, is right; so are a failure with its reason, and a late report."""
    right = right_evidence()
    assert find_violations(right) == []
    failed = bend_group(rankings=ranked((None, None), failure="timeout: it was silent"))(right)
    assert find_violations(failed) == []
    late = replace(right, events=[*right.events, Event(200, "job", "report")])
    assert find_violations(late) == []


@pytest.mark.parametrize("what", BENT)
def test_bent_evidence_is_found(what: str) -> None:
    """As the kind of violation that it is, of the job, key or seed that it is about."""
    kind, bend = BENT[what]
    found = find_violations(bend(right_evidence()))
    assert [each for each in found if each.kind == kind], found
    assert {each.where.split()[0] for each in found if each.where} <= {"job", "key-job", "key-reference", "0"}


def test_every_kind_of_violation_has_bent_evidence() -> None:
    """A kind that the checker names and no case here is found as would never have been seen to be found."""
    named = {part.partition('"')[0] for part in inspect.getsource(checker).split('Violation("')[1:]}
    assert named == {kind for kind, _ in BENT.values()}
