"""Copies of a reward behind one name come and go while groups are asked of it: real services, a real rank worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

import httpx
from pydantic import SecretStr

from dipole.client.endpoint import Endpoint
from dipole.stack.ports import reserve_port
from dipole_trainer.ranking.celery_ranker import ResolvedReward
from dipole_trainer.spec import RewardSpec

from ... import processes
from .ranking_harness import Harness, group, running_rank_worker

HOST, KEY = "copies.test", "a-key-of-all-copies-of-some-length"
IN_FLIGHT = 6
# What the cluster's DNS does, for a process that has its folder on PYTHONPATH: the name stands for a file's addresses.
RESOLVER = """
import pathlib, socket
asked, file = socket.getaddrinfo, pathlib.Path({file!r})
def getaddrinfo(host, *arguments, **named):
    hosts = file.read_text().split() if host == {host!r} else [host]
    return [entry for each in hosts for entry in asked(each, *arguments, **named)]
socket.getaddrinfo = getaddrinfo
"""
# Takes its time, and leaves a line for each group that it begins and each that it has ranked.
REWARD = """
import os, time
import numpy as np
from dipole_rewards.reward import Golden, Reward, Scores

class Slow(Reward):
    name = "slow"

    def score(self, *, prompt, images, metadata):
        if prompt:
            self.tell("begun")
            time.sleep(0.2)
            self.tell("ranked")
        return Scores([float(index) for index in range(len(images))])

    def tell(self, what):
        with open(os.environ["TOLD"], "a") as file:
            print(what, file=file, flush=True)

    def golden(self):
        return Golden(prompt="", image=np.zeros((8, 8, 3), np.uint8), score=0.0)
"""


class Copies:
    """Copies of the reward at 127.0.0.1, 127.0.0.2, … on one port, and the name that stands for those of a list."""

    def __init__(self, folder: Path, port: int) -> None:
        self.url, self._folder, self._port = f"http://{HOST}:{port}", folder, port
        (folder / "slow.py").write_text(REWARD)
        (folder / "sitecustomize.py").write_text(RESOLVER.format(file=str(folder / "addresses"), host=HOST))

    def name(self, *numbers: int) -> None:
        partial = self._folder / "addresses.partial"
        partial.write_text(" ".join(f"127.0.0.{number}" for number in numbers))
        partial.rename(self._folder / "addresses")

    @contextmanager
    def running(self, number: int) -> Iterator[subprocess.Popen[bytes]]:
        address = f"127.0.0.{number}"
        command = [sys.executable, "-m", "dipole.cli", "rewards", "serve", "slow:Slow"]
        told = {"DIPOLE_REWARD_KEY": KEY, "TOLD": str(self._folder / f"told-{number}")}
        at = ["--host", address, "--port", str(self._port)]
        process = processes.start([*command, *at], self._folder / f"log-{number}", cwd=self._folder, env=told)
        try:
            while not _answers(f"http://{address}:{self._port}/readyz"):
                assert process.poll() is None, (self._folder / f"log-{number}").read_text()
                time.sleep(0.05)
            yield process
        finally:
            process.kill()
            process.wait()

    def told(self, number: int) -> list[str]:
        file = self._folder / f"told-{number}"
        return file.read_text().split() if file.exists() else []


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def has_group_in_hand(process: subprocess.Popen[bytes], copies: Copies) -> bool:
    """Stops the first copy, and says whether it has begun a group that it has not ranked."""
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)
    return len(copies.told(1)) % 2 == 1


def test_copies_join_and_leave_under_load_and_no_group_is_lost(
    harness: Harness, redis_url: str, tmp_path: Path
) -> None:
    """A second copy is asked soon after its name is known; the first is killed with groups in hand, and they are ranked
    all the same; each group is answered once.
    """
    with reserve_port() as port, ExitStack() as stack:
        copies = Copies(tmp_path, port)
        copies.name(1)
        first = stack.enter_context(copies.running(1))
        stack.enter_context(running_rank_worker(redis_url, PYTHONPATH=str(tmp_path), DIPOLE_REWARD_HOSTS=HOST))
        ranker = harness.ranker(
            ResolvedReward(RewardSpec(name="slow", timeout_s=120), Endpoint(url=copies.url, key=SecretStr(KEY)))
        )
        numbers, answered, open_groups = count(), dict[str, str | None](), 0

        def go_on() -> None:
            """One more answer, with as many groups in flight as before."""
            nonlocal open_groups
            while open_groups < IN_FLIGHT:
                ranker.submit(group(f"g{next(numbers)}"))
                open_groups += 1
            ranked = ranker.collect(90)
            assert ranked is not None
            assert ranked.group_id not in answered
            answered[ranked.group_id] = ranked.results["slow"].failure
            open_groups -= 1

        go_on()
        stack.enter_context(copies.running(2))
        copies.name(1, 2)
        while len(copies.told(2)) < 4:
            go_on()
        while not has_group_in_hand(first, copies):
            first.send_signal(signal.SIGCONT)
            go_on()
        first.kill()
        copies.name(2)
        for _ in range(2 * IN_FLIGHT):
            go_on()
        while open_groups:
            ranked = ranker.collect(90)
            assert ranked is not None
            answered[ranked.group_id] = ranked.results["slow"].failure
            open_groups -= 1
    assert answered == {f"g{number}": None for number in range(next(numbers))}
    assert copies.told(1).count("begun") == copies.told(1).count("ranked") + 1, "it was killed with a group in hand"
