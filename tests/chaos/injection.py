"""How each kind of fault is done, and undone: a context manager a kind, which yields what was done, in words.

A fault lasts as long as its `with`. What cannot be done at this moment (the process is just being started again) says
so and does nothing: its words begin with "nothing".
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import cast

import psutil
import redis

from dipole.broker.rankings import queue_name

from .platform import NOT_THERE, Platform
from .schedule import PlannedFault

Fault = Callable[[Platform, PlannedFault], AbstractContextManager[str]]
FAULTS: dict[str, Fault] = {}
MEMORY_CGROUPS = Path("/sys/fs/cgroup/memory")
NO_FAKETIME = "libfaketime is not installed (apt-get install faketime)"
OUT_OF_MEMORY_BYTES = 4 * 2**20  # that a process may still allocate
KILLED_WITHIN_S = 3.0  # by the kernel; otherwise by us
CREATE_TAKES_S = 0.1
INTERCEPTED_S = 1.5  # for which messages are taken out, to come late
LET_PASS_S = 0.05


def does(*kinds: str) -> Callable[[Callable[[Platform, PlannedFault], Iterator[str]]], Fault]:
    """Registers how a kind is done."""

    def register(function: Callable[[Platform, PlannedFault], Iterator[str]]) -> Fault:
        for kind in kinds:
            FAULTS[kind] = contextlib.contextmanager(function)
        return FAULTS[kinds[0]]

    return register


def find_impossible(platform: Platform) -> dict[str, str]:
    """Kinds, and "kind target", that this machine or database cannot do, and why."""
    found = {f"disk-full {name}": disk.why_not for name, disk in platform.disks.items() if disk.why_not is not None}
    if found.keys() >= {f"disk-full {name}" for name in platform.disks}:
        found = {"disk-full": next(iter(found.values()))}
    if platform.faketime is None:
        found["clock-jump redis"] = found["clock-jump database"] = NO_FAKETIME
    if platform.database.name == "SQLite":
        found["database-away"] = "an SQLite is a file, and never away"
        found["clock-jump database"] = "an SQLite has the clock of whoever asks"
    return found


# ---- processes ------------------------------------------------------------------------------------------------------


@does("kill")
def kill(platform: Platform, fault: PlannedFault) -> Iterator[str]:
    yield platform.signal_group(fault.target, signal.SIGKILL)


@does("terminate")
def terminate(platform: Platform, fault: PlannedFault) -> Iterator[str]:
    pid = platform.pids.get(fault.target)
    if pid is not None:
        os.kill(pid, signal.SIGTERM)
    yield NOT_THERE if pid is None else f"process {pid}"


@does("kill-lane")
def kill_lanes(platform: Platform, fault: PlannedFault) -> Iterator[str]:
    killed = []
    with contextlib.suppress(psutil.Error):
        for lane in psutil.Process(platform.pids.get(fault.target, 2**22)).children():
            lane.kill()
            killed.append(lane.pid)
    yield f"lanes {killed}" if killed else "nothing: it had no lanes"


@does("freeze", "freeze-long")
def freeze(platform: Platform, fault: PlannedFault) -> Iterator[str]:
    pid = platform.pids.get(fault.target)
    if pid is None:
        yield NOT_THERE
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGSTOP)
    try:
        yield f"process {pid}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGCONT)


@does("out-of-memory")
def run_out_of_memory(platform: Platform, fault: PlannedFault) -> Iterator[str]:
    """By the kernel, where it lets us make a cgroup; otherwise by the signal that its killer sends."""
    pid = platform.pids.get(fault.target)
    if pid is None:
        yield NOT_THERE
        return
    group = MEMORY_CGROUPS / f"dipole-chaos-{os.getpid()}-{fault.number}"
    by = "SIGKILL, as the kernel's killer sends: no memory cgroup"
    try:
        with contextlib.suppress(OSError):
            group.mkdir()
            (group / "memory.limit_in_bytes").write_text(str(OUT_OF_MEMORY_BYTES))
            (group / "cgroup.procs").write_text(str(pid))
            by = "the kernel's killer"
        until = time.monotonic() + KILLED_WITHIN_S
        while psutil.pid_exists(pid) and group.exists() and time.monotonic() < until:
            time.sleep(0.05)
        if psutil.pid_exists(pid):
            by = "SIGKILL: the kernel had not yet" if group.exists() else by
            platform.signal_group(fault.target, signal.SIGKILL)
        yield f"process {pid} by {by}"
    finally:
        with contextlib.suppress(OSError):
            _remove_when_empty(group)


def _remove_when_empty(group: Path) -> None:
    until = time.monotonic() + 5
    while group.exists() and time.monotonic() < until:
        with contextlib.suppress(OSError):
            group.rmdir()
        time.sleep(0.1)


@does("kill-in-create")
def kill_in_create(platform: Platform, fault: PlannedFault) -> Iterator[str]:
    """A client creates a job there, and within a moment its API is killed; it asks again, with the same key."""
    platform.create_job(fault.target, f"in-create-{fault.number}")
    time.sleep(fault.chance * CREATE_TAKES_S)
    yield platform.signal_group(fault.target, signal.SIGKILL)


# ---- Redis ----------------------------------------------------------------------------------------------------------


@does("redis-kept")
def restart_redis(platform: Platform, fault: PlannedFault) -> Iterator[str]:
    yield platform.signal_group(platform.primary, signal.SIGKILL)


@does("redis-emptied")
def empty_redis(platform: Platform, fault: PlannedFault) -> Iterator[str]:
    """Its files go first, so that whoever starts it again finds none."""
    folder = platform.folder / platform.primary
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    yield platform.signal_group(platform.primary, signal.SIGKILL)


@does("redis-frozen")
def freeze_redis(platform: Platform, fault: PlannedFault) -> Iterator[str]:
    node = platform.primary
    done = platform.signal_group(node, signal.SIGSTOP)
    try:
        yield f"{node}, {done}"
    finally:
        platform.signal_group(node, signal.SIGCONT)


@does("redis-failover")
def fail_over(platform: Platform, fault: PlannedFault) -> Iterator[str]:
    old = platform.primary
    done = platform.signal_group(old, signal.SIGKILL)
    try:
        platform.promote_replica()
    except redis.RedisError as error:
        yield f"{old}, {done}; its replica could not be promoted: {error}"
        return
    yield f"{old}, {done}; {platform.primary} was promoted"


@does("messages-twice")
def deliver_twice(platform: Platform, fault: PlannedFault) -> Iterator[str]:
    seen: set[bytes] = set()
    with platform.redis_node(platform.primary) as client:
        for key, item in _intercept(client, fault.seconds):
            client.rpush(key, *([item] if item in seen else [item, item]))
            seen.add(item)
            time.sleep(LET_PASS_S)  # or we would take it again
    yield f"{len(seen)} delivered twice" if seen else "nothing: no message came by"


@does("messages-late")
def deliver_late(platform: Platform, fault: PlannedFault) -> Iterator[str]:
    with platform.redis_node(platform.primary) as client:
        held = list(_intercept(client, INTERCEPTED_S))
    try:
        yield f"{len(held)} held back" if held else "nothing: no message came by"
    finally:
        with platform.redis_node(platform.primary) as client:
            for key, item in held:
                client.rpush(key, item)


def _intercept(client: redis.Redis, seconds: float) -> Iterator[tuple[bytes, bytes]]:
    """(list, item) of what is sent to lanes, and to trainers, as one more who waits for it."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        runs = [key.decode().removeprefix("dipole:run:") for key in client.scan_iter(match="dipole:run:*")]
        queues = [queue_name(reward) for reward in ("digest", "watched")]
        taken = client.brpop([*queues, *(f"dipole:answers:{run}" for run in runs)], timeout=0.2)
        if taken is not None:
            yield cast("tuple[bytes, bytes]", taken)


# ---- what it stands on, and whom it asks ----------------------------------------------------------------------------


@does("database-away")
def take_database_away(platform: Platform, fault: PlannedFault) -> Iterator[str]:
    with platform.database.away():
        yield platform.database.name


@does("database-frozen")
def freeze_database(platform: Platform, fault: PlannedFault) -> Iterator[str]:
    with platform.database.frozen():
        yield platform.database.name


@does("disk-full")
def fill_disk(platform: Platform, fault: PlannedFault) -> Iterator[str]:
    with platform.disks[fault.target].full():
        yield f"{shutil.disk_usage(platform.disks[fault.target].folder).free} bytes free"


@does("endpoint-lies", "endpoint-slow", "endpoint-refuses")
def misbehave(platform: Platform, fault: PlannedFault) -> Iterator[str]:
    endpoint = platform.endpoints[fault.target]
    endpoint.misbehave(fault.kind, fault.variant)
    try:
        yield fault.variant
    finally:
        endpoint.misbehave("", "")


@does("clock-jump")
def jump_clock(platform: Platform, fault: PlannedFault) -> Iterator[str]:
    platform.set_clock(fault.target, float(fault.variant))
    try:
        yield f"by {float(fault.variant):+g} s"
    finally:
        platform.set_clock(fault.target, 0.0)


__all__ = ["FAULTS", "find_impossible"]
