"""What asking a reward over the wire costs beside computing it, and whether N rewards cost only the slowest.

    python benchmarks/ranking.py
    python benchmarks/ranking.py --reward dipole_rewards.rewards.shapes:Shapes --repeats 20 --json out/ranking.json

The same reward ranks the same groups of images
    in-process    its score(), called here: the forward
    JSON+PNG      RankClient to `dipole rewards serve` in a process of its own, images as base64 PNG
    multipart     the same, images as npy parts: what RankClient chooses by itself
    Celery        CeleryRanker: Redis, a rank worker and the reward service, each a process of its own
Overhead is a path's time less the forward's. It is printed in ms a group, as a share of the forward, and as a multiple
of PNG-encoding the group once, a cost that any protocol with compressed images would have.

The second table sends a group to N rewards that sleep, the slowest for `--slowest` seconds and the others evenly
below, over the Celery path: the time for all over the slowest's own, and over the sum that asking in turn would take.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from dipole import images
from dipole.client import RankClient
from dipole.settings import PlatformSettings
from dipole.stack import RewardService, Stack
from dipole_rewards.reward import resolve
from dipole_trainer.groups import Group
from dipole_trainer.ranking import CeleryRanker, ResolvedReward
from dipole_trainer.spec import RewardSpec

NAME = "measured"
PROMPT = "a red circle"
METADATA: dict[str, JsonValue] = {"tag": "single_object", "include": [{"class": "circle", "count": 1, "color": "red"}]}


def pictures(count: int, size: int, seed: int) -> NDArray[np.uint8]:
    """Smooth, slightly noisy images: they compress about as photographs do. uint8 (K, size, size, 3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 8, 8, 3)).astype(np.float64)
    smooth = coarse.repeat(size // 8, 1).repeat(size // 8, 2)
    return np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)


def timed(calls: Mapping[str, Callable[[int], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each after one round that is not counted. In turn, so that a busy moment hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(repeats + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call(number)
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(taken[1:]) for name, taken in times.items()}


class JsonOnly(httpx.BaseTransport):
    """Makes an endpoint say that it takes no multipart, so that the client sends JSON and PNG."""

    def __init__(self) -> None:
        self._inner = httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = self._inner.handle_request(request)
        if request.url.path != "/v1/info":
            return answer
        info = json.dumps({**json.loads(answer.read()), "multipart": False}).encode()
        return httpx.Response(200, headers={"content-type": "application/json"}, stream=httpx.ByteStream(info))

    def close(self) -> None:
        self._inner.close()


@contextmanager
def ranker(settings: PlatformSettings, rewards: list[ResolvedReward]) -> Iterator[Callable[[str, Any], None]]:
    """ask(id, images): a group sent over Celery, and its answers awaited."""
    celery = CeleryRanker(settings, f"bench-{os.getpid()}-{time.monotonic_ns()}", rewards)

    def ask(name: str, group: NDArray[np.uint8]) -> None:
        celery.submit(Group(name, 0, PROMPT, METADATA, group, range(len(group))))
        ranked = celery.collect(120)
        assert ranked is not None, "no answer within two minutes"
        for reward, result in ranked.results.items():
            assert result.failure is None, f"{reward}: {result.failure}"

    try:
        yield ask
    finally:
        celery.close()


# ---- overhead -------------------------------------------------------------------------------------------------------


def overhead(args: argparse.Namespace, settings: PlatformSettings, url: str, size: int) -> dict[str, Any]:
    """Seconds a group of each path."""
    groups = [pictures(args.candidates, size, seed) for seed in range(args.repeats + 1)]
    reward = resolve(args.reward).load("cpu")
    resolved = ResolvedReward(RewardSpec(name=NAME, timeout_s=300), url)
    with ExitStack() as stack:
        png = stack.enter_context(RankClient(url, transport=JsonOnly()))
        npy = stack.enter_context(RankClient(url))
        ask = stack.enter_context(ranker(settings, [resolved]))
        calls: dict[str, Callable[[int], object]] = {
            "in-process": lambda n: reward.score(prompt=PROMPT, images=list(groups[n]), metadata=METADATA),
            "PNG encoding": lambda n: [images.encode_png(image) for image in groups[n]],
            "JSON+PNG": lambda n: png.rank(PROMPT, list(groups[n]), METADATA),
            "multipart npy": lambda n: npy.rank(PROMPT, list(groups[n]), METADATA),
            "Celery": lambda n: ask(f"{size}.{n}", groups[n]),
        }
        return timed(calls, args.repeats)


def tell_overhead(size: int, count: int, seconds: dict[str, float]) -> list[dict[str, Any]]:
    forward, png = seconds["in-process"], seconds["PNG encoding"]
    print(f"\n{count} images of {size}x{size}: forward in-process {forward * 1e3:.1f} ms, "
          f"PNG encoding {png * 1e3:.1f} ms")  # fmt: skip
    print(f"{'path':>14} {'ms':>8} {'overhead ms':>12} {'/ forward':>10} {'/ PNG encoding':>15}")
    rows = []
    for path in ("JSON+PNG", "multipart npy", "Celery"):
        extra = seconds[path] - forward
        rows.append({
            "size": size, "candidates": count, "path": path, "seconds": seconds[path], "forward_s": forward,
            "png_s": png, "overhead_s": extra, "overhead_to_forward": extra / forward, "overhead_to_png": extra / png,
        })  # fmt: skip
        print(f"{path:>14} {seconds[path] * 1e3:8.1f} {extra * 1e3:12.1f} {extra / forward:10.2f} {extra / png:15.2f}")
    return rows


# ---- N rewards in flight --------------------------------------------------------------------------------------------


@contextmanager
def sleeper(seconds: float) -> Iterator[str]:
    """The URL of an endpoint that sleeps and answers."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.say({**NAMES, "name": "sleeper", "media_types": [images.NPY]})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            ids = [one.decode() for one in re.findall(rb'"id": ?"(c\d+)"', body)]
            time.sleep(seconds)
            results = [{"id": one, "score": float(n), "rank": len(ids) - n} for n, one in enumerate(ids)]
            self.say({**NAMES, "id": "rk_1", "created": 1, "results": results})

        def say(self, answer: dict[str, Any]) -> None:
            data = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


NAMES = {"model": "sleeper", "model_revision": "1", "recipe_version": "1"}


def in_flight(args: argparse.Namespace, settings: PlatformSettings, count: int) -> dict[str, Any]:
    """Seconds a group takes with `count` rewards at once."""
    delays = [args.slowest * (n + 1) / count for n in range(count)]
    groups = [pictures(args.candidates, 64, seed) for seed in range(args.repeats + 1)]
    with ExitStack() as stack:
        rewards = [
            ResolvedReward(RewardSpec(name=f"sleeper{count}.{n}", timeout_s=300), stack.enter_context(sleeper(delay)))
            for n, delay in enumerate(delays)
        ]
        ask = stack.enter_context(ranker(settings, rewards))
        seconds = timed({"all": lambda n: ask(f"n{count}.{n}", groups[n])}, args.repeats)["all"]
    row = {
        "rewards": count, "seconds": seconds, "slowest_s": args.slowest, "sum_s": sum(delays),
        "to_slowest": seconds / args.slowest, "to_sum": seconds / sum(delays),
    }  # fmt: skip
    print(f"{count:>8} {seconds:9.3f} {row['to_slowest']:10.2f} {row['to_sum']:8.2f}")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reward", default="dipole_rewards.rewards.colourfulness:Colourfulness", help="module:Class")
    parser.add_argument("--candidates", type=int, default=24)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 512], help="pixels of a side, multiples of 8")
    parser.add_argument("--rewards", type=int, nargs="+", default=[1, 2, 4, 8], help="how many in flight")
    parser.add_argument("--slowest", type=float, default=0.5, help="seconds")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as home,
        Stack(Path(home), [RewardService(NAME, args.reward)], worker=False) as stack,
    ):
        settings = PlatformSettings(redis_url=stack.redis_url)
        rows = []
        for size in args.sizes:
            seconds = overhead(args, settings, stack.reward_urls[NAME], size)
            rows += tell_overhead(size, args.candidates, seconds)
        print(f"\n{args.candidates} images of 64x64 to N rewards at once, the slowest sleeps {args.slowest:g} s")
        print(f"{'rewards':>8} {'seconds':>9} {'/ slowest':>10} {'/ sum':>8}")
        flights = [in_flight(args, settings, count) for count in args.rewards]
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        settings_used = {name: value for name, value in vars(args).items() if name != "json"}
        args.json.write_text(json.dumps({"settings": settings_used, "overhead": rows, "in_flight": flights}, indent=1))


if __name__ == "__main__":
    main()
