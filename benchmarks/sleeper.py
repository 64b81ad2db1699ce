"""For benchmarks/ranking.py and scaling.py: a reward that takes a given time and no processor, and copies of it behind
one name.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from pydantic import JsonValue

from dipole.stack.stack import HUGE_PAGES_ENVIRONMENT
from dipole_rewards.reward import Golden, Pixels, Reward, Scores

HOST, KEY = "sleepers.test", "a-key-of-all-sleepers"  # the name stands for all the copies, which want a key for it
# What the cluster's DNS does, for the processes that have this folder on their PYTHONPATH.
RESOLVER = """
import os, socket
asked = socket.getaddrinfo
def getaddrinfo(host, port, *arguments, **named):
    if host != {host!r}:
        return asked(host, port, *arguments, **named)
    found = open({file!r}).read().split()
    return [entry for address in found for entry in asked(address, port, *arguments, **named)]
socket.getaddrinfo = getaddrinfo
"""


class Sleeper(Reward):
    """Sleeps BENCHMARK_SLEEP_S a group, one group at a time, as a model on a GPU of its own would keep it waiting."""

    name = "sleeper"

    def score(self, *, prompt: str, images: Sequence[Pixels], metadata: Mapping[str, JsonValue] | None) -> Scores:
        if prompt:
            time.sleep(float(os.environ["BENCHMARK_SLEEP_S"]))
        return Scores([float(index) for index in range(len(images))])

    def golden(self) -> Golden:
        return Golden(prompt="", image=np.zeros((8, 8, 3), np.uint8), score=0.0)


class Names:
    """Makes HOST stand for `copies(n)` in every process started after `install`."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "addresses"
        self.copies(1)
        (folder / "sitecustomize.py").write_text(RESOLVER.format(host=HOST, file=str(self._file)))
        os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])

    def copies(self, count: int) -> None:
        self._file.write_text(" ".join(f"127.0.0.{n + 1}" for n in range(count)))


@contextmanager
def sleepers(count: int, seconds: float) -> Iterator[str]:
    """`count` services of Sleeper at 127.0.0.1, 127.0.0.2 …, ready; the one URL that stands for them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    here, own = Path(__file__).parent, {"BENCHMARK_SLEEP_S": str(seconds), "DIPOLE_REWARD_KEY": KEY}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "dipole.cli", "rewards", "serve", "sleeper:Sleeper",
             "--host", f"127.0.0.{n + 1}", "--port", str(port)],
            cwd=here, env={**os.environ, **HUGE_PAGES_ENVIRONMENT, **own}, stderr=subprocess.DEVNULL,
        )
        for n in range(count)
    ]  # fmt: skip
    try:
        for n in range(count):
            _until_ready(f"http://127.0.0.{n + 1}:{port}/readyz")
        yield f"http://{HOST}:{port}"
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(20)


def _until_ready(url: str) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            if httpx.get(url, timeout=2, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        assert time.monotonic() < until, f"{url} is not ready after a minute"
        time.sleep(0.1)
