"""What must hold after any disturbance. Pure: evidence in, violations out; a function a property.

A fault never excuses a violation. It may cost time: a lease, a pause, work since the last checkpoint.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .digest_reward import score_of_digest
from .evidence import Event, Evidence, Folder

ENDED = ("succeeded", "failed", "cancelled")
LEFT = ("lease_expired", "released", "paused", "queued", *ENDED)  # how a hold ends
AFTER_THE_END = ("report",)  # may be told of a job that has ended
HELD_BY = ("step", "checkpoint", "resumed", "evaluation", "samples", "best", "export")  # told by who holds the job


@dataclass(frozen=True)
class Violation:
    """`kind` is the property that does not hold, `where` the job, key or seed."""

    kind: str
    where: str
    what: str


def find_violations(evidence: Evidence) -> list[Violation]:
    return [found for check in CHECKS for found in check(evidence)]


def check_no_job_is_lost(evidence: Evidence) -> Iterator[Violation]:
    """Every key that was answered made one job, which is there, and which every answer named."""
    ids = {job.id for job in evidence.jobs}
    of_key: dict[str, set[str]] = defaultdict(set)
    for key, job in evidence.told.creates:
        of_key[key].add(job)
        if job not in ids:
            yield Violation("job lost", job, f"the create with key {key} was answered with it")
    for key, answered in of_key.items():
        if len(answered) > 1:
            yield Violation("job made twice", key, f"the same key was answered with {sorted(answered)}")
    for key, rows in Counter(row.key for row in evidence.jobs if row.key).items():
        if rows > 1:
            yield Violation("job made twice", key, f"{rows} rows have this key")


def check_every_job_ends_as_wished(evidence: Evidence) -> Iterator[Violation]:
    for job in evidence.jobs:
        if job.state not in job.wanted:
            why = f": {job.error}" if job.error else ""
            yield Violation("job not as wished", job.id, f"{job.state}, not {' or '.join(job.wanted)}{why}")


def check_no_job_runs_twice(evidence: Evidence) -> Iterator[Violation]:
    """Fences are 1, 2, ..., a hold ends before the next begins, nobody tells anything between, and nothing follows."""
    events = _by_job(evidence.events)
    for job in evidence.jobs:
        fences = [event.data.get("fence") for event in events[job.id] if event.kind == "running"]
        if fences != list(range(1, job.fence + 1)):
            yield Violation("job run twice", job.id, f"claims have the fences {fences}, and the row {job.fence}")
        yield from _check_holds(job.id, events[job.id])


def _check_holds(job: str, events: Sequence[Event]) -> Iterator[Violation]:
    held, ended = False, False
    for event in events:
        if ended and event.kind not in AFTER_THE_END:
            yield Violation("job run twice", job, f"event {event.id} ({event.kind}) after its end")
        elif event.kind == "running" and held:
            yield Violation("job run twice", job, f"event {event.id}: claimed while somebody held it")
        elif event.kind in HELD_BY and not held:
            yield Violation("job run twice", job, f"event {event.id} ({event.kind}) from somebody without a lease")
        held = (held or event.kind == "running") and event.kind not in LEFT
        ended = ended or event.kind in ENDED


def check_no_update_is_made_twice(evidence: Evidence) -> Iterator[Violation]:
    """Steps count up by one; a hold goes on from the newest checkpoint that was told, or from a later one that whoever
    died had no time to tell of."""
    events = _by_job(evidence.events)
    for job in evidence.jobs:
        step = saved = 0
        for event in events[job.id]:
            told = event.data.get("step")
            if event.kind == "running":
                step = 0
            elif event.kind == "resumed":
                step = int(str(told))
                if step < saved:
                    yield Violation("work lost", job.id, f"event {event.id}: resumed at {told}, checkpoint {saved}")
            elif event.kind == "checkpoint":
                saved = max(saved, int(str(told)))
            elif event.kind == "step":
                if told != step + 1:
                    yield Violation("update twice", job.id, f"event {event.id}: step {told} after step {step}")
                elif step == 0 < saved:
                    yield Violation("work lost", job.id, f"event {event.id}: anew, in spite of checkpoint {saved}")
                step = int(str(told))
        if job.state == "succeeded" and saved != job.steps:
            yield Violation("update lost", job.id, f"succeeded with a checkpoint of step {saved} of {job.steps}")


def check_no_ranking_is_made_up(evidence: Evidence) -> Iterator[Violation]:
    """Each score is the one that this image has; what has none has a reason."""
    for group in evidence.groups:
        for reward, ranking in group.rankings.items():
            where = f"{group.job} {group.name} {reward}"
            if len(ranking.scores) != len(group.candidates):
                yield Violation("ranking made up", where, f"{len(ranking.scores)} scores of {len(group.candidates)}")
                continue
            for index, (digest, score) in enumerate(zip(group.candidates, ranking.scores, strict=True)):
                if score is None:
                    if not ranking.failure and str(index) not in ranking.errors:
                        yield Violation("no reason", where, f"candidate {index} has neither score nor error")
                elif score != score_of_digest(digest):
                    yield Violation("ranking made up", where, f"candidate {index}: {score}")


def check_events_have_no_gap(evidence: Evidence) -> Iterator[Violation]:
    """What a stream gave, over all of its connections, is what SQL has: each once, in order."""
    events = _by_job(evidence.events)
    for job, got in evidence.told.streams.items():
        ids = [event.id for event in events[job]]
        if got == ids[: len(got)] and all(event.kind in AFTER_THE_END for event in events[job][len(got) :]):
            continue
        missing, more = sorted(set(ids) - set(got)), sorted(set(got) - set(ids))
        again = [event for event, count in Counter(got).items() if count > 1]
        what = f"missing {missing[:5]}, unknown {more[:5]}, twice {again[:5]}, in order: {got == sorted(got)}"
        yield Violation("events with a gap", job, what)


def check_artifacts_are_whole(evidence: Evidence) -> Iterator[Violation]:
    """A row of a checkpoint has its files, files can be read, and the log of steps has each once."""
    for job_id, step in evidence.checkpoints:
        if step not in evidence.folders.get(job_id, Folder()).weights:
            yield Violation("checkpoint without files", job_id, f"step {step}")
    for job in evidence.jobs:
        folder = evidence.folders[job.id]
        for what in folder.unreadable:
            yield Violation("file unreadable", job.id, what)
        if job.state == "succeeded":
            if list(folder.logged_steps) != list(range(1, job.steps + 1)):
                yield Violation("log of steps", job.id, f"metrics.jsonl has the steps {list(folder.logged_steps)}")
            for name in folder.unfinished:
                yield Violation("file unfinished", job.id, name)


def check_nothing_depends_on_the_disturbance(evidence: Evidence) -> Iterator[Violation]:
    """In synchronous mode: the same groups of the same candidates, and the same weights to the last bit."""
    groups: dict[str, dict[str, Sequence[str]]] = defaultdict(dict)
    for group in evidence.groups:
        groups[group.job][group.name] = group.candidates
    for job in evidence.jobs:
        reference = evidence.references.get(job.spec_name or "")
        if reference is None or job.id == reference or not (job.spec_name or "").startswith("sync-"):
            continue
        for name, candidates in groups[job.id].items():
            if candidates != groups[reference].get(name):
                yield Violation("other candidates", job.id, f"{name}, not as in {reference}")
        if job.state != "succeeded":
            continue
        for name in groups[reference].keys() - groups[job.id].keys():
            yield Violation("ranking lost", job.id, f"{name}, which {reference} has")
        ours, theirs = (evidence.folders[each].weights.get(job.steps) for each in (job.id, reference))
        if ours is None or ours != theirs:
            yield Violation("other weights", job.id, f"{ours}, and {theirs} in {reference}")


def check_answers(evidence: Evidence) -> Iterator[Violation]:
    """Callers asked for nothing wrong; the same seed is the same image."""
    for answer in evidence.told.wrong_answers:
        yield Violation("wrong answer", "", answer)
    images: dict[int, set[str]] = defaultdict(set)
    for seed, digest in evidence.told.images:
        images[seed].add(digest)
    for seed, digests in images.items():
        if len(digests) > 1:
            yield Violation("other image", str(seed), f"{len(digests)} different ones")


def check_nothing_is_unhandled(evidence: Evidence) -> Iterator[Violation]:
    """No process has logged an error that nobody meant to survive."""
    for line in evidence.unhandled:
        yield Violation("unhandled error", "", line)


def _by_job(events: Sequence[Event]) -> dict[str, list[Event]]:
    found: dict[str, list[Event]] = defaultdict(list)
    for event in sorted(events, key=lambda event: event.id):
        found[event.job].append(event)
    return found


CHECKS: tuple[Callable[[Evidence], Iterator[Violation]], ...] = (
    check_no_job_is_lost,
    check_every_job_ends_as_wished,
    check_no_job_runs_twice,
    check_no_update_is_made_twice,
    check_no_ranking_is_made_up,
    check_events_have_no_gap,
    check_artifacts_are_whole,
    check_nothing_depends_on_the_disturbance,
    check_answers,
    check_nothing_is_unhandled,
)
