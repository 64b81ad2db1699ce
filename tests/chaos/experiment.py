"""One run: undisturbed jobs for comparison, faults by the schedule while clients work, a settled platform, the verdict.

| thread         | does                                                          |
|----------------|---------------------------------------------------------------|
| the caller     | starts a thread for each fault when it is due; then waits     |
| a fault        | does it, waits for its time, undoes it, records it            |
| clients        | create jobs and follow them, ask for images                   |
| Redis's keeper | has whichever node is no primary follow the one that is       |
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .checker import Violation, find_violations
from .clients import Clients, Told
from .evidence import Evidence, FaultRecord, collect_evidence
from .injection import FAULTS, find_impossible
from .platform import Platform
from .schedule import PlannedFault, plan_faults

SETTLE_S = 300.0  # for the jobs that were under way, once nothing is disturbed any more
REDIS_LOOK_S = 0.5


@dataclass(frozen=True)
class Options:
    """What a run is asked for. `jobs_at_once` is how many clients create jobs."""

    seed: int
    seconds: float
    mean_gap_s: float
    database: str
    jobs_at_once: int = 3
    images: bool = True
    compared: Sequence[str] = ("sync-drpo", "sync-dpo")


@dataclass(frozen=True)
class Verdict:
    evidence: Evidence
    violations: Sequence[Violation]
    impossible: Mapping[str, str]
    uses: str
    """What the platform stood on, in words."""


OnProgress = Callable[[str, float, str], None]
"""Is told of a phase's name, the part of it that is over, and a line to print, or an empty one."""


def run_experiment(options: Options, folder: Path, on_progress: OnProgress) -> Verdict:
    """`folder` is empty, and keeps logs and the record of faults. What runs is gone when it returns."""
    on_progress("starting", 0.0, "")
    with Platform(folder, database=options.database, minutes=options.seconds / 60) as platform:
        told, references = Told(), dict[str, str]()
        clients = Clients(platform, told, patience_s=options.seconds + SETTLE_S)
        for name in options.compared:
            on_progress("undisturbed jobs", len(references) / len(options.compared), "")
            references[name] = clients.run_job(f"undisturbed-{name}", name)
        impossible = find_impossible(platform)
        plan = plan_faults(options.seed, options.seconds, mean_gap_s=options.mean_gap_s, impossible=impossible)
        clients.start(options.jobs_at_once, images=options.images)
        faults = _disturb(platform, plan, options.seconds, clients, folder / "faults.jsonl", on_progress)
        clients.stop()
        _settle(clients, on_progress)
        evidence = collect_evidence(
            platform.database.direct_url,
            platform.disks["artifacts"].folder,
            folder / "logs",
            told,
            references,
            faults,
        )
        uses = f"{platform.database.name}, {platform.redis_version}, {len(platform.pids)} processes"
    return Verdict(evidence, find_violations(evidence), impossible, uses)


def _disturb(
    platform: Platform,
    plan: Sequence[PlannedFault],
    seconds: float,
    clients: Clients,
    record: Path,
    on_progress: OnProgress,
) -> list[FaultRecord]:
    """Do what is planned, each when it is due; return when all is undone."""
    began, records, over = time.monotonic(), list[FaultRecord](), threading.Event()
    keeper = threading.Thread(target=_keep_redis, args=(platform, over), daemon=True)
    keeper.start()
    threads: list[threading.Thread] = []
    left = list(plan)
    while (now := time.monotonic() - began) < seconds:
        line = ""
        if left and left[0].at_s <= now:
            fault = left.pop(0)
            line = f"{now:7.1f} s  {fault.kind:<16} {fault.target:<17} {fault.variant:>7} {fault.seconds:g} s"
            threads.append(threading.Thread(target=_do, args=(platform, fault, began, records), daemon=True))
            threads[-1].start()
        on_progress(f"{len(plan) - len(left)} faults, {clients.ended} jobs ended", now / seconds, line)
        time.sleep(0.0 if line else 0.05)
    for thread in threads:
        thread.join()
    over.set()
    keeper.join()
    records.sort(key=lambda each: each.planned.number)
    record.write_text("".join(json.dumps(asdict(each)) + "\n" for each in records))
    return records


def _do(platform: Platform, fault: PlannedFault, began: float, records: list[FaultRecord]) -> None:
    at, done, error = time.monotonic(), "", None
    try:
        with FAULTS[fault.kind](platform, fault) as done:
            time.sleep(fault.seconds)
    except Exception as failure:
        # an injection that fails is told in the table; the platform may still not break
        error = f"{type(failure).__name__}: {failure}"
    ended = time.monotonic()
    records.append(FaultRecord(fault, round(at - began, 2), round(ended - began, 2), done, error))


def _keep_redis(platform: Platform, over: threading.Event) -> None:
    while not over.wait(REDIS_LOOK_S):
        platform.tend_redis()


def _settle(clients: Clients, on_progress: OnProgress) -> None:
    until = time.monotonic() + SETTLE_S
    while not clients.are_done() and time.monotonic() < until:
        on_progress(f"settling, {clients.ended} jobs ended", 1 - (until - time.monotonic()) / SETTLE_S, "")
        time.sleep(0.2)
