"""For benchmarks/ranking.py: a running reward service of cosmos-rl, asked as the fastest client in its source asks it.

Which is its latency benchmark (nvidia-cosmos/cosmos-rl at 89f2e5b, reward_service/cosmos_rl_reward/example/): it makes
a group's .npy beforehand, keeps its connection, pulls as soon as a group is enqueued and again every `--poll-interval`,
0.5 s unless told. The example client waits 1 s, the trainer's 1 s to 2 s, and longer after the fifth time. Nothing here
is slower than there; http.client costs less than requests, which it uses.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from urllib.parse import urlencode

import httpx
import numpy as np
from numpy.typing import NDArray

from dipole.client.endpoint import Endpoint

ENQUEUE, PULL = "/api/reward/enqueue", "/api/reward/pull"
BYTES, FORM = "application/octet-stream", "application/x-www-form-urlencoded"
DEFAULT_POLL_S = 0.5  # of that client
LONGEST_S = 120.0  # of a group; what failed in it is "not found" for ever


@dataclass(frozen=True)
class CosmosService:
    """`reward` is the reward_type that scores, `process_group` the one of all its processes, if it is to be stopped."""

    url: str
    reward: str
    process_group: int | None = None

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(url=self.url, kind="cosmos-rl-reward", options={"reward": self.reward})

    def body(self, prompt: str, group: NDArray[np.uint8]) -> bytes:
        """What is posted to enqueue uint8 (K, H, W, 3)."""
        described = {"media_type": "image", "prompts": [prompt] * len(group), "reward_fn": {self.reward: 1.0}}
        array = io.BytesIO()
        np.save(array, group, allow_pickle=False)
        return json.dumps(described).encode() + b"\n" + array.getvalue()

    @contextmanager
    def posts(self, bodies: list[bytes], poll_s: float) -> Iterator[Callable[[int], object]]:
        """Enqueues body n and pulls, with so long between two pulls, until its scores are there. For one thread."""
        address = httpx.URL(self.url)
        connection = http.client.HTTPConnection(address.host, address.port or 80)

        def post(path: str, body: bytes | str, kind: str) -> tuple[int, bytes]:
            connection.request("POST", path, body, {"Content-Type": kind})
            answer = connection.getresponse()
            return answer.status, answer.read()

        def ask(number: int) -> None:
            until = time.monotonic() + LONGEST_S
            status, told = post(ENQUEUE, bodies[number % len(bodies)], BYTES)
            assert status == 200, told
            form = urlencode({"uuid": json.loads(told)["uuid"], "type": self.reward})
            while (answer := post(PULL, form, FORM))[0] == 400:
                assert time.monotonic() < until, answer
                time.sleep(poll_s)
            assert answer[0] == 200, answer
            assert json.loads(answer[1])["scores"], answer

        with closing(connection):
            yield ask

    def asleep(self) -> AbstractContextManager[None]:
        """Stops it meanwhile: without work too it looks for some a thousand times a second."""
        return self._between(signal.SIGSTOP, signal.SIGCONT)

    def awake(self) -> AbstractContextManager[None]:
        """Inside of `asleep`: lets it run."""
        return self._between(signal.SIGCONT, signal.SIGSTOP)

    @contextmanager
    def _between(self, first: signal.Signals, last: signal.Signals) -> Iterator[None]:
        if self.process_group is None:
            yield
            return
        os.killpg(self.process_group, first)
        try:
            yield
        finally:
            os.killpg(self.process_group, last)
