"""The processes that train one job together: one alone, or as many as `accelerate launch` started (torch_group.py).

| who                     | waits for                            | woken by                                           |
|-------------------------|--------------------------------------|----------------------------------------------------|
| every process of a run  | the others' messages, once a step    | the last one's all_gather                          |
| whoever awaits rankings | rankings, in its loop's poll         | check_stop, which looks whether a process has left |
| a follower between runs | rank 0's next job (worker/followers) | rank 0's all_gather                                |

Every process draws its share of a window's prompts and has them ranked; gradients are summed, so all take the same
step. Rank 0 alone talks to the API and touches files. What processes tell each other is JSON, through `all_gather`, and
tensors, through `all_reduce_`; nothing is pickled. All must meet in the same order, so a run has one way out:

    rank 0 leaves, whatever its reason     the others get RunEnded where they meet it next
    another rank leaves, by an exception   all get that exception where they meet it next, so rank 0 leaves too
    a process dies                         PeerLost; the launcher ends the others, the job's lease runs out

Whoever leaves says so first, and `check_stop` hears it: nobody goes on waiting for rankings that may take days. This
module needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dipole_trainer.compute import gpu

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

StopCheck = Callable[[], None]


class ProcessGroup:
    """One process alone: it agrees with itself."""

    rank, size = 0, 1

    def __init__(self, device: str | None = None) -> None:
        """`device` is where this process computes; absent: a GPU where there is one."""
        self._device = device

    @property
    def device(self) -> str:
        if self._device is None:
            self._device = gpu.default_device()
        return self._device

    @property
    def is_main(self) -> bool:
        """Whether this process talks to the API and touches files."""
        return self.rank == 0

    def owns(self, index: int) -> bool:
        """Whether this process draws the prompt of that index."""
        return index % self.size == self.rank

    # ---- all processes call these, in the same order ----------------------------------------------------------------

    def all_gather(self, message: Mapping[str, Any], check_stop: StopCheck = lambda: None) -> list[Mapping[str, Any]]:
        """Everybody's message, by rank. While the others are waited for, `check_stop` is called, and what it raises is
        kept until all are out of this exchange.
        """
        return [message]

    def broadcast_state(self, optimizer: Optimizer, *, step: int, base: str, more: Sequence[Tensor] = ()) -> int:
        """Rank 0's weights, optimiser, `more` tensors and step for everybody; returns the step. `base` tells models
        apart.
        """
        return step

    def all_reduce_(self, tensors: Sequence[Tensor]) -> None:
        """Add up over processes, in place. Only right after an exchange."""

    def release_followers(self) -> None:
        """From here on rank 0 works alone: on the others this raises RunEnded, once rank 0 has left."""

    def leave_run(self, problem: Exception | None = None) -> None:
        """Out of the run, for whichever reason; every process calls it once. `problem` is told by all but rank 0."""

    def close(self) -> None:
        """There will be no other run."""

    # ---- and these when they like -----------------------------------------------------------------------------------

    def check_stop(self) -> None:
        """Raises what ends the run, where another process has left it."""

    def take_reports(self) -> list[tuple[str, dict[str, Any]]]:
        """On rank 0: what the others reported since this was last called, by rank."""
        return []
