"""Weights that sleep: moved to the host and back, never under a forward; over HTTP, and of every reward that has any.

No GPU is at hand here: `fake:0` is a device that remembers what was moved to it. Of torch's own modules only the
calls are seen to be right.
"""

from __future__ import annotations

import base64
import gc
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dipole.errors import Overloaded
from dipole.protocol.images import encode_png
from dipole_rewards import tiny_weights
from dipole_rewards.reward import Golden, Pixels, Reward, Scores
from dipole_rewards.scoring.weight_residence import WeightResidence
from dipole_rewards.settings import WeightSettings

from ..conftest import Serve

DEVICE = "fake:0"
KEY = "a-key-of-the-service"
PNG = base64.b64encode(encode_png(np.zeros((8, 8, 3), np.uint8))).decode()


class Network:
    """Where it was moved, in order; `room` is how many moves to the device succeed."""

    def __init__(self, room: int = 99) -> None:
        self.room, self.moves = room, [DEVICE]

    def to(self, device: str) -> Network:
        if device == DEVICE and self.room == 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        self.room -= device == DEVICE
        self.moves.append(device)
        return self

    def state_dict(self) -> dict[str, Any]:
        return {"weight": np.zeros(10, np.float32)}


class Weighted(Reward):
    """Its score says whether its network is on the device."""

    name = "weighted"
    network = Network()  # of the one instance that a test serves

    @classmethod
    def load(cls, device: str) -> Weighted:
        assert device == DEVICE
        cls.network = Network()
        return cls()

    def networks(self) -> Sequence[Network]:
        return [self.network]

    def score(self, *, prompt: str, images: Sequence[Pixels], metadata: Mapping[str, Any] | None) -> Scores:
        return Scores([float(self.network.moves[-1] == DEVICE)] * len(images))

    def golden(self) -> Golden:
        return Golden(prompt="", image=np.zeros((8, 8, 3), np.uint8), score=1.0)


def test_sleeping_moves_to_the_host_and_the_next_forward_back() -> None:
    """Each once: a second sleep and a second wake move nothing."""
    network = Network()
    weights = WeightResidence([network], DEVICE, timeout_s=5)
    assert weights.wake().moved_bytes == 0
    assert [(weights.sleep().status, weights.is_asleep) for _ in range(2)] == [("asleep", True)] * 2
    with weights.hold_awake():
        assert network.moves == [DEVICE, "cpu", DEVICE]
    with weights.hold_awake():
        assert not weights.is_asleep
    assert network.moves == [DEVICE, "cpu", DEVICE]
    assert (weights.sleep().moved_bytes, weights.wake().moved_bytes) == (40, 40)


def test_weights_are_not_moved_under_a_forward() -> None:
    """Sleep waits until it ends, and gives up where it does not."""
    network = Network()
    weights = WeightResidence([network], DEVICE, timeout_s=30)
    sleeping = threading.Thread(target=weights.sleep)
    with weights.hold_awake():
        sleeping.start()
        sleeping.join(0.05)
        assert network.moves == [DEVICE]
    sleeping.join(30)
    assert network.moves == [DEVICE, "cpu"]
    hurried = WeightResidence([network], DEVICE, timeout_s=0.01)
    with hurried.hold_awake(), pytest.raises(Overloaded):
        hurried.sleep()


def test_a_device_without_room_leaves_them_asleep_and_whole() -> None:
    """What was moved already goes back, the caller hears when to come again, and then it works."""
    first, second = Network(), Network(room=0)
    weights = WeightResidence([first, second], DEVICE, timeout_s=5)
    weights.sleep()
    with pytest.raises(Overloaded, match="fake:0 has no room") as caught, weights.hold_awake():
        pass
    assert caught.value.retry_after
    assert (first.moves[-1], second.moves[-1], weights.is_asleep) == ("cpu", "cpu", True)
    second.room = 1
    with weights.hold_awake():
        assert (first.moves[-1], second.moves[-1]) == (DEVICE, DEVICE)


@pytest.mark.anyio
async def test_over_http_it_sleeps_ranks_awake_and_tells_its_metrics(serve: Serve) -> None:
    """Both routes need the key; ranking wakes; a reward without weights answers too."""
    request = {"prompt": "p", "candidates": [{"id": "c0", "image": {"media_type": "image/png", "data": PNG}}]}
    async with serve(reward=f"{__name__}:Weighted", reward_device=DEVICE, reward_key=KEY) as client:
        assert [(await client.post(f"/v1/{route}")).status_code for route in ("sleep", "wake")] == [401, 401]
        client.headers["Authorization"] = f"Bearer {KEY}"
        answers = [(await client.post(f"/v1/{route}")).json() for route in ("sleep", "sleep", "wake")]
        moved = [(each["status"], each["moved_bytes"]) for each in answers]
        assert moved == [("asleep", 40), ("asleep", 0), ("awake", 40)]
        await client.post("/v1/sleep")
        assert "dipole_reward_asleep 1.0" in (await client.get("/metrics")).text
        assert (await client.get("/readyz")).status_code == 200
        ranked = (await client.post("/v1/rank", json=request)).json()
        assert ranked["results"][0]["score"] == 1.0
        assert "dipole_reward_asleep 0.0" in (await client.get("/metrics")).text
        await client.post("/v1/sleep")
        Weighted.network.room = 0
        full = await client.post("/v1/rank", json=request)
        assert (full.status_code, "Retry-After" in full.headers) == (503, True)
        assert "has no room" in full.json()["detail"]
    async with serve() as client:
        assert (await client.post("/v1/sleep")).json()["moved_bytes"] == 0
        assert (await client.post("/v1/rank", json=request)).status_code == 200


@pytest.mark.parametrize("name", tiny_weights.WRITERS)
def test_every_reward_names_all_of_its_networks(name: str, tmp_path: Path) -> None:
    """Moved to the host and back, it scores as before; and no module of its that has weights is left out."""
    files, kind = tiny_weights.WRITERS[name]
    files(tmp_path)
    reward = kind.from_settings(WeightSettings(reward_weights=tmp_path, reward_dtype="fp32"), "cpu")
    named = {id(tensor) for network in reward.networks() for tensor in network.parameters()}
    assert named
    assert {id(tensor) for module in reachable_modules(reward) for tensor in module.parameters()} == named


def reachable_modules(start: object) -> list[nn.Module]:
    """Every torch module that hangs on an object, also by a closure or a bound method."""
    found, seen, todo = [], {id(start)}, [start]
    while todo:
        one = todo.pop()
        if isinstance(one, nn.Module):
            found.append(one)
            continue
        inner = gc.get_referents(one)
        if isinstance(one, FunctionType):
            inner = list(one.__closure__ or ())
        if isinstance(one, MethodType):
            inner = [one.__self__]
        for each in inner:
            if id(each) not in seen and not isinstance(each, type | ModuleType):
                seen.add(id(each))
                todo.append(each)
    return found
