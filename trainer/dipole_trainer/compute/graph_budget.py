"""How many graphs a run holds on to: as many as a budget of memory has room for.

Samples are drawn to be ranked, and needed with a graph once they are. One that is kept from the drawing spares the
update a second pass; where there is no room for it, the sample is drawn again. The gradient is the same.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dipole_trainer.compute.peak_memory import PeakMemory
from dipole_trainer.spec import TrainSpec

GIB = 2**30
CPU_BUDGET_BYTES = GIB


def choose_budget(spec: TrainSpec, free_bytes: int | None) -> int:
    """Bytes that a job's graphs may take on one device; `free_bytes` are a GPU's beside the weights, None on a CPU."""
    if spec.memory == "lean":
        return 0
    if spec.memory_budget_gib is not None:
        return int(spec.memory_budget_gib * GIB)
    # the other half is for what works beside the graphs
    return CPU_BUDGET_BYTES if free_bytes is None else free_bytes // 2


def free_gpu_bytes(device: str) -> int | None:
    """None on a CPU, which shares its memory with everything else on the machine."""
    return torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else None


@dataclass
class KeptGraph:
    """A micro-batch of samples with the graph that made them; `phi` once it has been computed."""

    x: Tensor  # (n, c, h, w)
    nbytes: int  # of the whole, φ's share too
    phi: Mapping[str, Tensor] = field(default_factory=dict)  # {key: (n, T, D)}


class GroupGraphs:
    """What is kept of one group, by the rows of its micro-batches."""

    def __init__(self) -> None:
        self._by_rows: dict[tuple[int, ...], KeptGraph] = {}

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in self._by_rows.values())

    def put(self, rows: Sequence[int], graph: KeptGraph) -> None:
        self._by_rows[tuple(rows)] = graph

    def get(self, rows: Sequence[int]) -> KeptGraph | None:
        return self._by_rows.get(tuple(rows))

    def take(self, rows: Sequence[int]) -> KeptGraph | None:
        """And hold it no longer."""
        return self._by_rows.pop(tuple(rows), None)

    def drop_from(self, row: int) -> None:
        """Of the micro-batches from the one with this row on: without the row, later ones begin elsewhere."""
        self._by_rows = {rows: graph for rows, graph in self._by_rows.items() if rows[-1] < row}

    def clear(self) -> None:
        self._by_rows.clear()


class GraphBudget:
    """Says whether there is room for another graph. What a group lets go, or is let go with, is room again."""

    def __init__(self, limit_bytes: int, on_given_up: Callable[[], None] = lambda: None) -> None:
        self.limit_bytes = limit_bytes
        self._on_given_up = on_given_up
        self._sample_bytes: int | None = None
        self._groups: weakref.WeakSet[GroupGraphs] = weakref.WeakSet()

    @property
    def held_bytes(self) -> int:
        return sum(each.nbytes for each in self._groups)

    def open_group(self) -> GroupGraphs:
        graphs = GroupGraphs()
        self._groups.add(graphs)
        return graphs

    def find_room(self, count: int, make_one: Callable[[], object]) -> int:
        """Bytes of the graphs of `count` more samples, or 0 where there is no room for them.

        `make_one` makes one sample's, and is called the first time alone: what it holds is what each takes.
        """
        if not self.limit_bytes:
            return 0
        if self._sample_bytes is None:
            self._sample_bytes = measure_graph(make_one)
        wanted = count * self._sample_bytes
        return wanted if self.held_bytes + wanted <= self.limit_bytes else 0

    def give_up(self) -> bool:
        """Let go of every graph, and keep none from here on. Whether that changes anything."""
        if not self.limit_bytes:
            return False
        self.limit_bytes = 0
        for each in self._groups:
            each.clear()
        self._on_given_up()
        return True


def measure_graph(make: Callable[[], object]) -> int:
    """Bytes that what `make` returns holds, the graph behind it and all; weights are not among them.

    A compiled network is run as the plain one, which holds more.
    """
    with torch.enable_grad(), torch.compiler.set_stance("force_eager"), PeakMemory() as memory:
        made = make()
        held = int(memory.alive_bytes)
    del made
    return held
