"""What asking a reward over the wire costs beside computing it, and how it grows with groups, rewards and replicas.

    python benchmarks/ranking.py
    python benchmarks/ranking.py --reward dipole_rewards.rewards.shapes:Shapes --repeats 20 --json out/ranking.json
    BENCHMARK_SLEEP_S=0 PYTHONPATH=benchmarks python benchmarks/ranking.py --reward sleeper:Sleeper \
        --sizes 512 --groups 0 --rewards --replicas                                 # overhead alone, of no forward

**Overhead.** The same reward ranks the same groups of images
    in-process    its score(), called here: the forward
    bare POST     http.client to `dipole rewards serve` in a process of its own, the body made beforehand
    JSON+PNG      RankClient to the same service, images as base64 PNG
    multipart     the same, images as npy parts: what RankClient chooses by itself
    Celery        CeleryRanker: a rank worker and the reward service, each a process of its own, and the images in
                  Redis or in this machine's memory (DIPOLE_CANDIDATE_STORE), from where the service reads them
A path's time less the forward's, also as a multiple of PNG-encoding the group once, a cost that any protocol with
compressed images would have; its time over that of the bare POST; and where the Celery paths' goes, each part of it
measured alone. With `--reward sleeper:Sleeper`, which computes nothing, all of the time is asking.

**In flight.** A service that takes `--seconds` a group, one group at a time, and does not compute: groups over Celery
with always two in flight, against the same reward called here.
**Rewards.** A group to N such services, the slowest takes `--seconds` and the others evenly less: the time for all over
the slowest's own, and over the sum that asking in turn would take.
**Replicas.** N copies of that service behind one name, two groups in flight for each: groups a second over one copy's.
**Four in flight.** `--in-flight` groups always under way, of a reward that computes nothing: groups a second of bare
POSTs by as many threads, which keep their connections, and over Celery by either store. The paths take turns of
2 seconds, `--repeats` times after one that is not counted, and each turn begins with a group that is not counted; told
is the median turn. With `--cosmos-rl URL` the same groups go to cosmos-rl's reward service, which is to run on the same
machine with a reward that computes nothing (of its own kind: this script does not start it): by RankClient's adapter
and as the fastest client in its source asks by default, of which the faster is its number; and, as `its fastest`, the
most that any of `--cosmos-polls` brings. That client's bodies are made beforehand, and Celery's groups are not. The
service works for a third of a core or more when it has nothing to do, so `--cosmos-group` stops it in others' turns:

    OMP_NUM_THREADS=1 python benchmarks/ranking.py --groups 0 --rewards --replicas \\
        --cosmos-rl http://127.0.0.1:8080 --cosmos-group PGID
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from cosmos_service import DEFAULT_POLL_S, CosmosService
from numpy.typing import NDArray
from pydantic import JsonValue, SecretStr
from sleeper import HOST, KEY, Names, Sleeper, sleepers

from dipole.broker.candidates import CandidateStore
from dipole.broker.connection import connect_redis
from dipole.broker.references import StoredGroup, make_reference, parse_reference
from dipole.broker.shared_memory import SharedMemory
from dipole.client.endpoint import Endpoint
from dipole.client.rank_client import RankClient
from dipole.protocol import images
from dipole.settings import PlatformSettings
from dipole.stack.stack import LocalReward, Stack
from dipole_rewards.reward import import_reward
from dipole_trainer.ranking.celery_ranker import CeleryRanker, ResolvedReward
from dipole_trainer.ranking.groups import CandidateGroup
from dipole_trainer.spec import RewardSpec

NAME = "measured"
PARTS = {  # the first is asking the reward, its forward included
    "Celery, Redis": ("multipart npy", "hashing", "Redis set", "Redis get", "Redis drop"),
    "Celery, memory": ("by reference", "hashing", "memory put", "memory drop"),
}
TURN_S = 2.0  # of each path in turn, with many groups in flight
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


class Asking:
    """Groups over Celery: `send` one, `take` the next that is ranked, or both for one group."""

    def __init__(self, settings: PlatformSettings, rewards: list[ResolvedReward]) -> None:
        self._celery = CeleryRanker(settings, f"bench-{os.getpid()}-{time.monotonic_ns()}", rewards)

    def send(self, name: str, group: NDArray[np.uint8]) -> None:
        self._celery.submit(CandidateGroup(name, 0, PROMPT, METADATA, group, range(len(group))))

    def take(self) -> None:
        ranked = self._celery.collect(120)
        assert ranked is not None, "no answer within two minutes"
        for reward, result in ranked.results.items():
            assert result.failure is None, f"{reward}: {result.failure}"

    def __call__(self, name: str, group: NDArray[np.uint8]) -> None:
        self.send(name, group)
        self.take()

    def stream(self, groups: list[NDArray[np.uint8]], *, in_flight: int, name: str = "") -> float:
        """Seconds for all groups with so many always under way, after one that is not counted. A name that was used
        before is not ranked again.
        """
        self(f"{name}first", groups[0])
        began = time.perf_counter()
        for n, group in enumerate(groups):
            if n >= in_flight:
                self.take()
            self.send(f"{name}{n}", group)
        for _ in groups[-in_flight:]:
            self.take()
        return time.perf_counter() - began


@contextmanager
def ranker(settings: PlatformSettings, rewards: list[ResolvedReward]) -> Iterator[Asking]:
    asking = Asking(settings, rewards)
    try:
        yield asking
    finally:
        asking._celery.close()


# ---- overhead -------------------------------------------------------------------------------------------------------


def overhead(args: argparse.Namespace, settings: PlatformSettings, url: str, size: int) -> dict[str, Any]:
    """Seconds a group of each path."""
    groups = [pictures(args.candidates, size, seed) for seed in range(args.repeats + 1)]
    reward = import_reward(args.reward).load("cpu")
    resolved = ResolvedReward(RewardSpec(name=NAME, timeout_s=300), Endpoint(url=url))
    with ExitStack() as stack:
        png = stack.enter_context(RankClient(url, transport=JsonOnly()))
        npy = stack.enter_context(RankClient(url))
        by_redis, by_memory = (
            stack.enter_context(ranker(settings.model_copy(update={"candidate_store": each}), [resolved]))
            for each in ("redis", "memory")
        )
        calls: dict[str, Callable[[int], object]] = {
            "in-process": lambda n: reward.score(prompt=PROMPT, images=list(groups[n]), metadata=METADATA),
            "PNG encoding": lambda n: [images.encode_png(image) for image in groups[n]],
            "bare POST": stack.enter_context(bare_posts(url, rank_bodies(url, groups))),
            "JSON+PNG": lambda n: png.rank(PROMPT, list(groups[n]), METADATA),
            "multipart npy": lambda n: npy.rank(PROMPT, list(groups[n]), METADATA),
            "Celery, Redis": lambda n: by_redis(f"{size}.{n}", groups[n]),
            "Celery, memory": lambda n: by_memory(f"{size}.{n}", groups[n]),
            **parts(stack, settings, groups, npy),
        }
        return timed(calls, args.repeats)


def rank_bodies(url: str, groups: list[NDArray[np.uint8]]) -> list[tuple[bytes, str]]:
    """(multipart body, its content type) of each group."""
    bodies = []
    for group in groups:
        described = [{"id": f"c{n}", "image": {"media_type": images.NPY}} for n in range(len(group))]
        request = {"prompt": PROMPT, "candidates": described, "metadata": METADATA}
        files = [(f"c{n}", (f"c{n}.npy", images.encode_npy(image), images.NPY)) for n, image in enumerate(group)]
        made = httpx.Request("POST", url, data={"request": json.dumps(request)}, files=files)
        bodies.append((made.read(), made.headers["content-type"]))
    return bodies


@contextmanager
def bare_posts(
    url: str, bodies: list[tuple[bytes, str]], *, key: str = "", keeps_connection: bool = False
) -> Iterator[Callable[[int], object]]:
    """Posts body n, which is made, by the plainest client there is. For one thread."""
    connection = http.client.HTTPConnection(httpx.URL(url).host, httpx.URL(url).port or 80)

    def post(number: int) -> None:
        body, kind = bodies[number % len(bodies)]
        if not keeps_connection:  # the server does not either, where the other paths take long
            connection.close()
        headers = {"Content-Type": kind, "Idempotency-Key": uuid.uuid4().hex}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        connection.request("POST", "/v1/rank", body, headers)
        answer = connection.getresponse()
        told = answer.read()
        assert answer.status == 200, told

    with closing(connection):
        yield post


def parts(
    stack: ExitStack, settings: PlatformSettings, groups: list[NDArray[np.uint8]], client: RankClient
) -> dict[str, Callable[[int], object]]:
    """What the Celery paths do with a group's images, one by one, in the order in which they can be done."""
    redis = CandidateStore(connect_redis(settings.redis_url), 60)
    memory = SharedMemory(settings.candidate_dir)
    stack.callback(memory.close)
    shape = "x".join(map(str, groups[0].shape[:3]))
    names = [f"sha256:{n:064x}:{shape}" for n in range(len(groups))]
    return {
        "hashing": lambda n: make_reference(groups[n]),
        "Redis set": lambda n: redis.put(names[n], groups[n]),
        "Redis get": lambda n: redis.get(names[n]),
        "Redis drop": lambda n: redis.delete([names[n]]),
        "memory put": lambda n: memory.put(parse_reference(names[n]), groups[n]),
        "by reference": lambda n: client.rank(
            PROMPT, list(groups[n]), METADATA, stored=StoredGroup(names[n], memory.id)
        ),
        "memory drop": lambda n: memory.delete(parse_reference(names[n])),
    }


def tell_overhead(size: int, count: int, seconds: dict[str, float]) -> list[dict[str, Any]]:
    forward, png = seconds["in-process"], seconds["PNG encoding"]
    print(f"\n{count} images of {size}x{size}: forward in-process {forward * 1e3:.1f} ms, "
          f"PNG encoding {png * 1e3:.1f} ms")  # fmt: skip
    print(f"{'path':>14} {'ms':>8} {'overhead ms':>12} {'/ forward':>10} {'/ PNG encoding':>15} {'/ bare POST':>12}")
    rows: list[dict[str, Any]] = []
    for path in ("bare POST", "JSON+PNG", "multipart npy", *PARTS):
        extra = seconds[path] - forward
        rows.append({
            "size": size, "candidates": count, "path": path, "seconds": seconds[path], "forward_s": forward,
            "png_s": png, "overhead_s": extra, "overhead_to_forward": extra / forward, "overhead_to_png": extra / png,
            "to_bare_post": seconds[path] / seconds["bare POST"],
        })  # fmt: skip
        print(f"{path:>14} {seconds[path] * 1e3:8.1f} {extra * 1e3:12.1f} {extra / forward:10.2f} {extra / png:15.2f} "
              f"{seconds[path] / seconds['bare POST']:12.2f}")  # fmt: skip
    for row in rows[-len(PARTS) :]:
        asking, *others = PARTS[row["path"]]
        where = {asking: seconds[asking] - forward, **{each: seconds[each] for each in others}}
        where["messages, the rest"] = row["overhead_s"] - sum(where.values())
        row["where_s"] = where
        print(f"of {row['path']}: " + ", ".join(f"{each} {spent * 1e3:.1f}" for each, spent in where.items()) + " ms")
    return rows


# ---- N rewards in flight --------------------------------------------------------------------------------------------


def rewards_at_once(args: argparse.Namespace, settings: PlatformSettings, count: int, size: int) -> dict[str, Any]:
    """Seconds a group takes with `count` rewards at once."""
    delays = [args.seconds * (n + 1) / count for n in range(count)]
    repeats = max(3, args.repeats // 3)
    groups = [pictures(args.candidates, size, seed) for seed in range(repeats + 1)]
    with ExitStack() as stack:
        urls = [stack.enter_context(sleepers(1, delay)) for delay in delays]
        rewards = [
            ResolvedReward(
                RewardSpec(name=f"sleeper{size}.{count}.{n}", timeout_s=300), Endpoint(url=url, key=SecretStr(KEY))
            )
            for n, url in enumerate(urls)
        ]
        ask = stack.enter_context(ranker(settings, rewards))
        seconds = timed({"all": lambda n: ask(f"n{count}.{n}", groups[n])}, repeats)["all"]
    row = {
        "size": size, "rewards": count, "seconds": seconds, "slowest_s": args.seconds, "sum_s": sum(delays),
        "to_slowest": seconds / args.seconds, "to_sum": seconds / sum(delays),
    }  # fmt: skip
    print(f"{size:>6} {count:>8} {seconds:9.3f} {row['to_slowest']:10.2f} {row['to_sum']:8.2f}")
    return row


# ---- groups in flight, replicas -------------------------------------------------------------------------------------


def two_in_flight(args: argparse.Namespace, settings: PlatformSettings, size: int) -> dict[str, Any]:
    """Throughput with two groups under way over that of calling the reward in turn, here."""
    groups = [pictures(args.candidates, size, seed) for seed in range(args.groups)]
    os.environ["BENCHMARK_SLEEP_S"] = str(args.seconds)
    reward, began = Sleeper.load("cpu"), time.perf_counter()
    for group in groups:
        reward.score(prompt=PROMPT, images=list(group), metadata=METADATA)
    here = time.perf_counter() - began
    with sleepers(1, args.seconds) as url:
        resolved = ResolvedReward(RewardSpec(name=f"two{size}", timeout_s=300), Endpoint(url=url, key=SecretStr(KEY)))
        with ranker(settings, [resolved]) as ask:
            over = ask.stream(groups, in_flight=2)
    row = {"size": size, "groups": len(groups), "seconds": over, "in_process_s": here, "throughput": here / over}
    print(f"{len(groups)} groups of {args.candidates} images of {size}x{size}, two in flight: {over:.2f} s; "
          f"in-process {here:.2f} s; throughput {here / over:.3f} of it")  # fmt: skip
    return row


def replicas(args: argparse.Namespace, settings: PlatformSettings, names: Names, size: int) -> list[dict[str, Any]]:
    """Groups a second of N copies behind one name, against those of one."""
    print(f"{'size':>6} {'replicas':>8} {'groups/s':>9} {'/ one':>8} {'/ N':>6}")
    rows: list[dict[str, Any]] = []
    groups = [pictures(args.candidates, size, seed) for seed in range(16)]
    for count in args.replicas:
        names.copies(count)
        with sleepers(count, args.seconds) as url:
            resolved = ResolvedReward(
                RewardSpec(name=f"replicas{size}.{count}", timeout_s=300), Endpoint(url=url, key=SecretStr(KEY))
            )
            with ranker(settings, [resolved]) as ask:
                asked = [groups[n % 16] for n in range(12 * count)]
                rate = len(asked) / ask.stream(asked, in_flight=2 * count)
        one = rows[0]["groups_per_s"] / rows[0]["replicas"] if rows else rate / count
        rows.append({"size": size, "replicas": count, "groups_per_s": rate, "linear": rate / one / count})
        print(f"{size:>6} {count:>8} {rate:9.2f} {rate / one:8.2f} {rate / one / count:6.2f}")
    return rows


# ---- N groups in flight, of a reward that computes nothing ----------------------------------------------------------

COSMOS_PATHS = ("cosmos-rl, adapter", f"cosmos-rl, {DEFAULT_POLL_S:g} s")  # as it is asked by whoever sets nothing
Turn = Callable[[], float]  # groups a second


def many_in_flight(
    args: argparse.Namespace, settings: PlatformSettings, cosmos: CosmosService | None, size: int
) -> list[dict[str, Any]]:
    """Groups a second of each path, in turn, so that a busy moment hits all alike."""
    count = args.in_flight
    groups = [pictures(args.candidates, size, seed) for seed in range(4 * count)]
    with ExitStack() as stack:
        url = stack.enter_context(sleepers(1, 0.0)).replace(HOST, "127.0.0.1")
        resolved = ResolvedReward(
            RewardSpec(name=f"nothing{size}", timeout_s=300), Endpoint(url=url, key=SecretStr(KEY))
        )
        posts = partial(bare_posts, url, rank_bodies(url, groups), key=KEY, keeps_connection=True)
        turns: dict[str, Turn] = {"bare POST": partial(turn_of_threads, count, posts)}
        for path, store in zip(PARTS, ("redis", "memory"), strict=True):
            ask = stack.enter_context(ranker(settings.model_copy(update={"candidate_store": store}), [resolved]))
            turns[path] = partial(turn_of_celery, count, ask, groups, itertools.count())
        if cosmos is not None:
            turns |= cosmos_turns(args, cosmos, stack.enter_context(RankClient(cosmos.endpoint)), groups)
        rates: dict[str, list[float]] = {path: [] for path in turns}
        for _ in range(args.repeats + 1):
            for path, turn in turns.items():
                rates[path].append(turn())
    return tell_in_flight(args, size, {path: taken[1:] for path, taken in rates.items()})


def turn_of_threads(count: int, connect: Callable[[], AbstractContextManager[Callable[[int], object]]]) -> float:
    """Each thread asks for one group after the other, over a connection of its own."""
    numbers = itertools.count()
    with ExitStack() as stack:
        asks = [stack.enter_context(connect()) for _ in range(count)]
        pool = stack.enter_context(ThreadPoolExecutor(count))
        asks[0](next(numbers))
        began = time.perf_counter()

        def ask_on(ask: Callable[[int], object]) -> int:
            done = 0
            while time.perf_counter() - began < TURN_S:
                ask(next(numbers))
                done += 1
            return done

        return sum(pool.map(ask_on, asks)) / (time.perf_counter() - began)


def turn_of_celery(count: int, ask: Asking, groups: list[NDArray[np.uint8]], numbers: Iterator[int]) -> float:
    """`numbers` go on from turn to turn: a name that was used before is not ranked again."""
    ask(f"{next(numbers)}", groups[0])
    began, sent, taken = time.perf_counter(), 0, 0
    while time.perf_counter() - began < TURN_S or taken < sent:
        if sent - taken < count and time.perf_counter() - began < TURN_S:
            number = next(numbers)
            ask.send(f"{number}", groups[number % len(groups)])
            sent += 1
        else:
            ask.take()
            taken += 1
    return taken / (time.perf_counter() - began)


def cosmos_turns(
    args: argparse.Namespace, cosmos: CosmosService, client: RankClient, groups: list[NDArray[np.uint8]]
) -> dict[str, Turn]:
    """By our adapter, and as its own client asks, at each time between two pulls."""

    def by_adapter(number: int) -> None:
        client.rank(PROMPT, list(groups[number % len(groups)]), METADATA, deadline_s=120)

    def awake(connect: Callable[[], AbstractContextManager[Callable[[int], object]]]) -> float:
        with cosmos.awake():
            return turn_of_threads(args.in_flight, connect)

    bodies = [cosmos.body(PROMPT, group) for group in groups]
    turns: dict[str, Turn] = {COSMOS_PATHS[0]: partial(awake, lambda: nullcontext(by_adapter))}
    for poll_s in (DEFAULT_POLL_S, *args.cosmos_polls):
        turns[f"cosmos-rl, {poll_s:g} s"] = partial(awake, partial(cosmos.posts, bodies, poll_s))
    return turns


def tell_in_flight(args: argparse.Namespace, size: int, rates: dict[str, list[float]]) -> list[dict[str, Any]]:
    medians = {path: statistics.median(taken) for path, taken in rates.items()}
    against = {"bare POST": medians["bare POST"]}
    if args.cosmos_rl:
        against["cosmos-rl"] = max(medians[path] for path in COSMOS_PATHS)
        against["its fastest"] = max(rate for path, rate in medians.items() if path.startswith("cosmos-rl"))
    print(f"\n{args.in_flight} groups of {args.candidates} images of {size}x{size} always under way")
    print(f"{'path':>20} {'groups/s':>9} {'lowest':>8} {'highest':>8}" + "".join(f" {f'/ {to}':>13}" for to in against))
    rows: list[dict[str, Any]] = []
    for path, rate in medians.items():
        ratios = {to: rate / other for to, other in against.items()}
        rows.append({
            "size": size, "in_flight": args.in_flight, "path": path, "groups_per_s": rate, "turns": rates[path],
            "to": ratios,
        })  # fmt: skip
        print(f"{path:>20} {rate:9.2f} {min(rates[path]):8.2f} {max(rates[path]):8.2f}"
              + "".join(f" {ratio:13.2f}" for ratio in ratios.values()))  # fmt: skip
    for path in PARTS:
        print(f"a bare POST's over {path}: {against['bare POST'] / medians[path]:.2f}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reward", default="dipole_rewards.rewards.colourfulness:Colourfulness", help="module:Class")
    parser.add_argument("--candidates", type=int, default=24)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 512], help="pixels of a side, multiples of 8")
    parser.add_argument("--rewards", type=int, nargs="*", default=[1, 2, 4, 8], help="how many at once")
    parser.add_argument("--replicas", type=int, nargs="*", default=[1, 2, 4, 8], help="how many copies")
    parser.add_argument("--seconds", type=float, default=1.0, help="what a group takes a sleeping reward")
    parser.add_argument("--groups", type=int, default=20, help="with two of them in flight; 0 leaves that out")
    parser.add_argument(
        "--in-flight", type=int, default=4, help="groups under way of a reward that computes nothing; 0 leaves that out"
    )
    parser.add_argument("--cosmos-rl", metavar="URL", help="a running reward service of cosmos-rl to be measured too")
    parser.add_argument("--cosmos-reward", default="constant", help="its reward_type that computes nothing")
    parser.add_argument(
        "--cosmos-polls", type=float, nargs="*", default=[0.1, 0.05, 0.02, 0.01],
        help=f"seconds between two pulls of its own client, beside its default of {DEFAULT_POLL_S:g} s",
    )  # fmt: skip
    parser.add_argument(
        "--cosmos-group", type=int, metavar="PGID", help="its process group, to be stopped while others have their turn"
    )
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    os.environ["DIPOLE_REWARD_HOSTS"] = HOST
    os.environ["DIPOLE_RANK_THREADS"] = str(max([8, args.in_flight, *(2 * count for count in args.replicas)]))
    with tempfile.TemporaryDirectory() as home:
        names = Names(Path(home))
        with Stack(Path(home), [LocalReward(NAME, args.reward)], worker=False) as stack:
            settings = PlatformSettings(redis_url=stack.redis_url)
            cosmos = CosmosService(args.cosmos_rl, args.cosmos_reward, args.cosmos_group) if args.cosmos_rl else None
            with cosmos.asleep() if cosmos else nullcontext():
                told = measure(args, settings, stack.reward_urls[NAME], names)
                told["many_in_flight"] = [
                    row for size in args.sizes if args.in_flight for row in many_in_flight(args, settings, cosmos, size)
                ]
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        settings_used = {name: value for name, value in vars(args).items() if name != "json"}
        args.json.write_text(json.dumps({"settings": settings_used, **told}, indent=1))


def measure(args: argparse.Namespace, settings: PlatformSettings, url: str, names: Names) -> dict[str, Any]:
    told: dict[str, Any] = {"overhead": []}
    for size in args.sizes:
        told["overhead"] += tell_overhead(size, args.candidates, overhead(args, settings, url, size))
    print()
    told["two_in_flight"] = [two_in_flight(args, settings, size) for size in args.sizes if args.groups]
    print(f"\n{args.candidates} images to N rewards at once, the slowest sleeps {args.seconds:g} s")
    print(f"{'size':>6} {'rewards':>8} {'seconds':>9} {'/ slowest':>10} {'/ sum':>8}")
    told["rewards"] = [rewards_at_once(args, settings, n, size) for size in args.sizes for n in args.rewards]
    print(f"\n{args.candidates} images to a reward of N replicas, each takes {args.seconds:g} s a group")
    told["replicas"] = [row for size in args.sizes for row in replicas(args, settings, names, size)]
    return told


if __name__ == "__main__":
    main()
