"""One of several processes that train together, over torch.distributed as `accelerate launch` sets it up.

Messages are gathered over gloo, which any network carries; there processes wait for each other. A bell, a key in the
launcher's store, is rung by whoever leaves a run, and heard by those who wait for something else. A run's end is a
message like any other: all processes see it at the same place, and the next run finds them in step. What goes over
these connections is neither encrypted nor authenticated, as is usual between training processes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, distributed
from torch.nn import functional
from torch.optim import Optimizer

from dipole.errors import InvalidInput
from dipole_trainer.distributed.failures import Over, ProcessLost, as_json, from_json
from dipole_trainer.distributed.group import Heed, World
from dipole_trainer.distributed.heartbeat import SILENCE_S, Pulse, connect
from dipole_trainer.jsonable import plain

POLL = timedelta(seconds=0.5)  # how often a waiting process looks whether it should stop
PATIENCE = timedelta(days=30)


class Together(World):
    """A message is waited for as long as it takes, which may be days: a process may be held up by people's rankings, 7
    days for each, and the others wait for it. Tensors follow a message at once, so they keep torch's own time limits,
    which are minutes."""

    def __init__(self, *, on_cpu: bool, silence_s: float = SILENCE_S) -> None:
        state = PartialState(cpu=on_cpu or not torch.cuda.is_available())
        super().__init__("cpu" if state.device.type == "cpu" else str(state.device))
        self.rank, self.size = state.process_index, state.num_processes
        self._messages = distributed.new_group(backend="gloo", timeout=PATIENCE)
        with self._reaching():
            self._bells = connect()
        self._pulse = Pulse(self.rank, self.size, silence_s=silence_s)
        self._pulse.start()
        self._run = 0  # number of this run: a bell is of one run
        self._over = self._lost = self._waiting = False
        self._stop: Exception | None = None  # what `heed` raised while this process waited
        self._events: list[tuple[str, dict[str, Any]]] = []  # on rank 0 of the others, on the others not yet told

    # ---- meeting ----------------------------------------------------------------------------------------------------

    def exchange(self, message: Mapping[str, Any], heed: Heed = lambda: None) -> list[Mapping[str, Any]]:
        return [said["message"] for said in self._meet({"message": message}, heed)]

    def retire(self) -> None:
        while not self.leads:
            self._meet({})

    def leave(self, problem: Exception | None = None) -> None:
        if self._lost:
            return
        said: dict[str, Any] = {"over": self.leads, **({"problem": as_json(problem)} if problem else {})}
        if not self._over and (self.leads or problem):
            self._ring()
        while not self._over:
            self._gather(said)
        self._over = False

    def close(self) -> None:
        self._pulse.stop()
        distributed.destroy_process_group()

    def heed(self) -> None:
        if self._waiting:  # it is where all meet already
            return
        if self._stop is not None:
            raise self._stop
        with self._reaching():
            rung = self._bells.check([self._bell])
        if rung:
            self._meet({"heard": True})
            raise AssertionError("whoever rings leaves")

    def _meet(self, said: Mapping[str, Any], heed: Heed = lambda: None) -> list[dict[str, Any]]:
        """What everybody says, where all go on; raises the same on all where somebody does not."""
        told = self._gather(said, heed)
        if self._over:
            raise Over
        for rank, each in enumerate(told):
            if "problem" in each:
                raise from_json(each["problem"], f"process {rank} of {self.size}")
        if any("heard" in each for each in told):  # rank 0 rang while it waited here: it leaves, and tells then
            raise self._stop or Over()
        return told

    def _gather(self, said: Mapping[str, Any], heed: Heed = lambda: None) -> list[dict[str, Any]]:
        own = [] if self.leads else self._events
        text = torch.frombuffer(bytearray(json.dumps({**said, "events": own}).encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.long) for _ in range(self.size)]
        self._all_gather(lengths, torch.tensor([len(text)]), heed)
        longest = max(int(length) for length in lengths)
        texts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
        self._all_gather(texts, functional.pad(text, (0, longest - len(text))), heed)
        told = [json.loads(each[: int(n)].numpy().tobytes()) for each, n in zip(texts, lengths, strict=True)]
        others = [(kind, data) for each in told for kind, data in each["events"]]
        self._events = self._events + others if self.leads else []
        if told[0].get("over"):
            self._over, self._stop, self._run, self._events = True, None, self._run + 1, []
        return told

    def _all_gather(self, out: list[Tensor], tensor: Tensor, heed: Heed) -> None:
        """Wait, and look now and then whether the run should stop."""
        with self._reaching():
            work = distributed.all_gather(out, tensor, group=self._messages, async_op=True)
            assert work is not None
            while True:
                with suppress(RuntimeError):  # not yet; or a failure, which is raised below
                    work.wait(POLL)
                if work.is_completed():
                    break
                self._waiting = True
                try:
                    heed()
                except Exception as error:
                    self._stop = self._stop or error
                    self._ring()
                finally:
                    self._waiting = False
            work.wait()

    # ---- the bell ---------------------------------------------------------------------------------------------------

    @property
    def _bell(self) -> str:
        return f"dipole/run/{self._run}/bell"

    def _ring(self) -> None:
        """Call the others to where all meet."""
        with self._reaching():
            self._bells.set(self._bell, "rung")

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Whatever torch.distributed raises means that somebody is gone."""
        try:
            yield
        except RuntimeError as error:
            self._lost = True
            raise ProcessLost(f"another process of this worker is gone: {error}") from error

    # ---- events and tensors -----------------------------------------------------------------------------------------

    def tell(self, kind: str, data: Mapping[str, Any]) -> None:
        """Not on rank 0: have it report an event, with the next message."""
        self._events.append((kind, plain(data)))

    def events(self) -> list[tuple[str, dict[str, Any]]]:
        taken, self._events = self._events, []
        return taken

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        with self._reaching():
            works = [distributed.all_reduce(tensor, async_op=True) for tensor in tensors]
            for work in works:
                assert work is not None
                work.wait()

    def align(self, optimizer: Optimizer, *, step: int, base: str) -> int:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state = {
            index: {name: list(torch.as_tensor(value).shape) for name, value in values.items()}
            for index, values in optimizer.state_dict()["state"].items()
        }
        told = self.exchange({"step": step, "base": base, "state": state})
        if any(each["base"] != base for each in told):
            raise InvalidInput("the model's weights are not the same on every machine: copy one over", field="model")
        if not self.leads:
            empty = {
                int(index): {name: torch.zeros(shape) for name, shape in shapes.items()}
                for index, shapes in told[0]["state"].items()
            }
            optimizer.load_state_dict({**optimizer.state_dict(), "state": empty})
        moments = [value for parameter in parameters for value in optimizer.state[parameter].values()]
        self._broadcast([parameter.data for parameter in parameters] + moments)
        return int(told[0]["step"])

    def _broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Rank 0's values for everybody, in place; AdamW keeps its counters on the CPU, which nccl does not reach."""
        with self._reaching():
            for tensor in tensors:
                there = tensor.to(self.device)
                distributed.broadcast(there, 0)
                tensor.copy_(there)
