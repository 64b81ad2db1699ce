"""The processes that train one job together: one alone, or as many as `accelerate launch` started.

Every process draws its share of a window's prompts and has them ranked; gradients are summed, so all take the same
step. Rank 0 alone talks to the API and touches files. What processes tell each other is JSON, through `exchange`, and
tensors, through `sum_` and `broadcast_`; nothing is pickled. Collectives must be met by all in the same order, so a
run has one way out: rank 0 says so in an exchange, and Over ends the others wherever they are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

PATIENCE = timedelta(days=8)  # a process may wait for people's rankings, 7 days at most, while the others wait for it


class Over(Exception):
    """Rank 0 has left the run."""


class World:
    """One process alone. `device` is where it computes."""

    rank, size = 0, 1

    def __init__(self, device: str) -> None:
        self.device = device

    @property
    def leads(self) -> bool:
        """Whether this process talks to the API and touches files."""
        return self.rank == 0

    def mine(self, index: int) -> bool:
        """Whether this process draws the window's prompt of that index."""
        return index % self.size == self.rank

    def exchange(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        """Every process's message, by rank. Raises Over, on all but rank 0, when rank 0's says {"over": true}."""
        return [message]

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Add up over processes, in place."""

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """Rank 0's values for everybody, in place."""

    def leave(self) -> None:
        """End the run on every process; all call it once, on their way out."""


class Together(World):
    """One of several processes, started by `accelerate launch`; sets torch.distributed up."""

    def __init__(self) -> None:
        from accelerate import PartialState

        state = PartialState(timeout=PATIENCE)
        super().__init__(str(state.device))
        self.rank, self.size = state.process_index, state.num_processes
        self._text = distributed.new_group(backend="gloo", timeout=PATIENCE)  # JSON never needs a GPU
        self._left = False

    def exchange(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        text = torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.long) for _ in range(self.size)]
        distributed.all_gather(lengths, torch.tensor([len(text)]), group=self._text)
        longest = max(int(length) for length in lengths)
        texts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
        distributed.all_gather(texts, torch.nn.functional.pad(text, (0, longest - len(text))), group=self._text)
        messages = [json.loads(bytes(each[: int(n)].tolist())) for each, n in zip(texts, lengths, strict=True)]
        if messages[0].get("over"):
            self._left = True
            if not self.leads:
                raise Over
        return messages

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            distributed.all_reduce(tensor)

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            distributed.broadcast(tensor, 0)

    def leave(self) -> None:
        while not self._left:
            try:
                self.exchange({"over": True} if self.leads else {})
            except Over:
                break
        self._left = False


def join(device: str | None = None) -> World:
    """The world that this process was started in."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return Together()
    return World(device or ("cuda" if torch.cuda.is_available() else "cpu"))
