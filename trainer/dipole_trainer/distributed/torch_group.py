"""One of several processes that train together, over torch.distributed as `accelerate launch` sets it up.

Messages are gathered over gloo, which any network carries; there processes wait for each other. A stop flag, a key in
the launcher's store, is set by whoever leaves a run, and seen by those who wait for something else. A run's end is a
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
from dipole_trainer.distributed.failures import PeerLost, RunEnded, exception_from_json, exception_to_json
from dipole_trainer.distributed.group import ProcessGroup, StopCheck
from dipole_trainer.distributed.heartbeat import SILENCE_TIMEOUT_S, HeartbeatThread, connect_store
from dipole_trainer.jsonable import to_jsonable

POLL_INTERVAL = timedelta(seconds=0.5)  # how often a waiting process looks whether it should stop
COLLECTIVE_TIMEOUT = timedelta(days=30)


class TorchProcessGroup(ProcessGroup):
    """A message is waited for as long as it takes, which may be days: a process may be held up by people's rankings, 7
    days for each, and the others wait for it. Tensors follow a message at once, so they keep torch's own time limits,
    which are minutes."""

    def __init__(self, *, on_cpu: bool, silence_s: float = SILENCE_TIMEOUT_S) -> None:
        state = PartialState(cpu=on_cpu or not torch.cuda.is_available())
        super().__init__("cpu" if state.device.type == "cpu" else str(state.device))
        self.rank, self.size = state.process_index, state.num_processes
        self._messages = distributed.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)
        with self._peer_errors():
            self._store = connect_store()
        self._heartbeat = HeartbeatThread(self.rank, self.size, silence_s=silence_s)
        self._heartbeat.start()
        self._run = 0  # number of this run: a stop flag is of one run
        self._run_ended = self._peer_lost = self._pending_reports = False
        self._stop: Exception | None = None  # what `check_stop` raised while this process waited
        # on rank 0 of the others, on the others not yet told
        self._reports: list[tuple[str, dict[str, Any]]] = []

    # ---- meeting ----------------------------------------------------------------------------------------------------

    def all_gather(self, message: Mapping[str, Any], check_stop: StopCheck = lambda: None) -> list[Mapping[str, Any]]:
        return [said["message"] for said in self._barrier({"message": message}, check_stop)]

    def release_followers(self) -> None:
        while not self.is_main:
            self._barrier({})

    def leave_run(self, problem: Exception | None = None) -> None:
        if self._peer_lost:
            return
        said: dict[str, Any] = {"over": self.is_main, **({"problem": exception_to_json(problem)} if problem else {})}
        if not self._run_ended and (self.is_main or problem):
            self._signal_stop()
        while not self._run_ended:
            self._all_gather_json(said)
        self._run_ended = False

    def close(self) -> None:
        self._heartbeat.stop()
        distributed.destroy_process_group()

    def check_stop(self) -> None:
        # it is where all meet already
        if self._pending_reports:
            return
        if self._stop is not None:
            raise self._stop
        with self._peer_errors():
            flag_is_set = self._store.check([self._stop_key])
        if flag_is_set:
            self._barrier({"heard": True})
            raise AssertionError("whoever sets the stop flag has left")

    def _barrier(self, message: Mapping[str, Any], check_stop: StopCheck = lambda: None) -> list[dict[str, Any]]:
        """What everybody says, where all go on; raises the same on all where somebody does not."""
        told = self._all_gather_json(message, check_stop)
        if self._run_ended:
            raise RunEnded
        for rank, each in enumerate(told):
            if "problem" in each:
                raise exception_from_json(each["problem"], f"process {rank} of {self.size}")
        # rank 0 set the flag while it waited here: it leaves, and tells then
        if any("heard" in each for each in told):
            raise self._stop or RunEnded()
        return told

    def _all_gather_json(
        self, message: Mapping[str, Any], check_stop: StopCheck = lambda: None
    ) -> list[dict[str, Any]]:
        own = [] if self.is_main else self._reports
        text = torch.frombuffer(bytearray(json.dumps({**message, "events": own}).encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.long) for _ in range(self.size)]
        self._wait_all_gather(lengths, torch.tensor([len(text)]), check_stop)
        longest = max(int(length) for length in lengths)
        texts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
        self._wait_all_gather(texts, functional.pad(text, (0, longest - len(text))), check_stop)
        told = [json.loads(each[: int(n)].numpy().tobytes()) for each, n in zip(texts, lengths, strict=True)]
        others = [(kind, data) for each in told for kind, data in each["events"]]
        self._reports = self._reports + others if self.is_main else []
        if told[0].get("over"):
            self._run_ended, self._stop, self._run, self._reports = True, None, self._run + 1, []
        return told

    def _wait_all_gather(self, out: list[Tensor], tensor: Tensor, check_stop: StopCheck) -> None:
        """Wait, and look now and then whether the run should stop."""
        with self._peer_errors():
            work = distributed.all_gather(out, tensor, group=self._messages, async_op=True)
            assert work is not None
            while True:
                # not yet; or a failure, which is raised below
                with suppress(RuntimeError):
                    work.wait(POLL_INTERVAL)
                if work.is_completed():
                    break
                self._pending_reports = True
                try:
                    check_stop()
                except Exception as error:
                    self._stop = self._stop or error
                    self._signal_stop()
                finally:
                    self._pending_reports = False
            work.wait()

    # ---- the stop flag ----------------------------------------------------------------------------------------------

    @property
    def _stop_key(self) -> str:
        return f"dipole/run/{self._run}/stop"

    def _signal_stop(self) -> None:
        """Call the others to where all meet."""
        with self._peer_errors():
            self._store.set(self._stop_key, "set")

    @contextmanager
    def _peer_errors(self) -> Iterator[None]:
        """Whatever torch.distributed raises means that somebody is gone."""
        try:
            yield
        except RuntimeError as error:
            self._peer_lost = True
            raise PeerLost(f"another process of this worker is gone: {error}") from error

    # ---- events and tensors -----------------------------------------------------------------------------------------

    def report(self, kind: str, data: Mapping[str, Any]) -> None:
        """Not on rank 0: have it report an event, with the next message."""
        self._reports.append((kind, to_jsonable(data)))

    def take_reports(self) -> list[tuple[str, dict[str, Any]]]:
        taken, self._reports = self._reports, []
        return taken

    def all_reduce_(self, tensors: Sequence[Tensor]) -> None:
        with self._peer_errors():
            works = [distributed.all_reduce(tensor, async_op=True) for tensor in tensors]
            for work in works:
                assert work is not None
                work.wait()

    def broadcast_state(self, optimizer: Optimizer, *, step: int, base: str, more: Sequence[Tensor] = ()) -> int:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state = {
            index: {name: list(torch.as_tensor(value).shape) for name, value in values.items()}
            for index, values in optimizer.state_dict()["state"].items()
        }
        told = self.all_gather({"step": step, "base": base, "state": state})
        if any(each["base"] != base for each in told):
            raise InvalidInput("the model's weights are not the same on every machine: copy one over", field="model")
        if not self.is_main:
            empty = {
                int(index): {name: torch.zeros(shape) for name, shape in shapes.items()}
                for index, shapes in told[0]["state"].items()
            }
            optimizer.load_state_dict({**optimizer.state_dict(), "state": empty})
        moments = [value for parameter in parameters for value in optimizer.state[parameter].values()]
        self._broadcast_tensors([*(parameter.data for parameter in parameters), *moments, *more])
        return int(told[0]["step"])

    def _broadcast_tensors(self, tensors: Sequence[Tensor]) -> None:
        """Rank 0's values for everybody, in place; AdamW keeps its counters on the CPU, which nccl does not reach."""
        with self._peer_errors():
            for tensor in tensors:
                there = tensor.to(self.device)
                distributed.broadcast(there, 0)
                tensor.copy_(there)
