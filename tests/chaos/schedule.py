"""What is done to the platform and when: a pure function of the seed.

Every kind of fault comes once, in an order that the seed shuffles, before any comes again, so that a short run has seen
many and a long one all of them. A target is hurt by one fault at a time; faults of different targets overlap.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEASE_S = 4.0  # of jobs, under chaos: a minute has room for several takeovers
APIS = ("api-1", "api-2")
WORKERS = ("worker-1", "worker-2")
RANK_WORKERS = ("rank-worker-1", "rank-worker-2")
SAMPLERS = ("sampler-1", "sampler-2")
REWARDS = ("digest",)
ENDPOINTS = ("trained-endpoint", "watched-endpoint")
PROCESSES = (*APIS, *WORKERS, *RANK_WORKERS, *SAMPLERS, *REWARDS)
CLOCKS = (*PROCESSES, "database", "redis")
LIES = ("nan", "missing", "twice", "html", "cut", "stranger")
JUMPS_S = (-7200.0, -90.0, 90.0, 7200.0)


@dataclass(frozen=True)
class FaultKind:
    """A kind of fault: whom it may hit, how long it lasts, in seconds, and what it does, for the table."""

    name: str
    targets: Sequence[str]
    seconds: tuple[float, float]
    does: str
    variants: Sequence[str] = ("",)
    copies: int = 1
    """How often it comes in a round of all kinds."""


KINDS: tuple[FaultKind, ...] = (
    FaultKind("kill", PROCESSES, (0, 0), "kill -9 of a process with its group", copies=3),
    FaultKind("terminate", PROCESSES, (0, 0), "SIGTERM, as an orchestrator's restart", copies=2),
    FaultKind("kill-lane", RANK_WORKERS, (0, 0), "kill -9 of a rank worker's lanes"),
    FaultKind("freeze", PROCESSES, (0.5, LEASE_S / 2), "SIGSTOP for less than a lease"),
    FaultKind("freeze-long", PROCESSES, (LEASE_S * 1.5, LEASE_S * 2.5), "SIGSTOP for longer than a lease"),
    FaultKind("out-of-memory", (*WORKERS, *SAMPLERS), (0, 0), "the kernel's killer, in a memory cgroup"),
    FaultKind("kill-in-create", APIS, (0, 0), "kill -9 of an API while it creates a job"),
    FaultKind("redis-kept", ("redis",), (0, 0), "kill -9 of Redis, started again on its files"),
    FaultKind("redis-emptied", ("redis",), (0, 0), "kill -9 of Redis, started again without its files"),
    FaultKind("redis-frozen", ("redis",), (1, 6), "SIGSTOP of Redis"),
    FaultKind("redis-failover", ("redis",), (0, 0), "kill -9 of Redis's primary, its replica promoted"),
    FaultKind("database-away", ("database",), (1, 6), "crash of the database, and no way to it"),
    FaultKind("database-frozen", ("database",), (1, 6), "SIGSTOP of the database; an SQLite is locked"),
    FaultKind("endpoint-lies", ENDPOINTS, (2, 6), "answers that are none", variants=LIES, copies=2),
    FaultKind("endpoint-slow", ENDPOINTS, (2, 6), "answers seconds late, or never", variants=("1", "3", "60")),
    FaultKind("endpoint-refuses", ENDPOINTS, (2, 6), "503, 500, 404, or a closed door", ("503", "500", "404", "0")),
    FaultKind("disk-full", ("artifacts", "home", "database-disk"), (2, 6), "no space left on a real file system"),
    FaultKind("clock-jump", CLOCKS, (4, 8), "the wall clock of a process jumps, and back", tuple(map(str, JUMPS_S))),
    FaultKind("messages-twice", ("queues",), (1, 2), "messages and answers in Redis are delivered twice"),
    FaultKind("messages-late", ("queues",), (3, 12), "messages are held back, and delivered after others"),
)
FAULTS = {kind.name: kind for kind in KINDS}


@dataclass(frozen=True)
class PlannedFault:
    """`at_s` and `seconds` from the start of the disturbance; `chance` in [0, 1) is for what the injection draws."""

    number: int
    at_s: float
    kind: str
    target: str
    seconds: float
    variant: str
    chance: float


def plan_faults(
    seed: int, duration_s: float, *, mean_gap_s: float, impossible: Mapping[str, str] | None = None
) -> list[PlannedFault]:
    """The faults of a run, by time. `impossible` has the kinds, or "kind target", that this machine cannot do."""
    draw, left_out = random.Random(seed), set(impossible or {})
    busy_until: dict[str, float] = {}
    deck: list[FaultKind] = []
    planned: list[PlannedFault] = []
    at = draw.uniform(0, mean_gap_s)
    while at < duration_s:
        if not deck:
            deck = [kind for kind in KINDS if kind.name not in left_out for _ in range(kind.copies)]
            draw.shuffle(deck)
        kind = deck.pop()
        seconds = round(draw.uniform(*kind.seconds), 2)
        variant, chance = draw.choice(kind.variants), draw.random()
        targets = [each for each in kind.targets if f"{kind.name} {each}" not in left_out]
        free = [each for each in targets if busy_until.get(each, 0.0) <= at]
        if free:
            target = draw.choice(free)
            busy_until[target] = at + seconds + 1.0
            planned.append(PlannedFault(len(planned) + 1, round(at, 2), kind.name, target, seconds, variant, chance))
        at += draw.uniform(0.5, 1.5) * mean_gap_s
    return planned
