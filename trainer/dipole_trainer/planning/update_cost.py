"""One update's cost by phase: the loop's own rollout, run once on fake tensors, with operations and bytes counted.

One chunk of samples is run and its cost taken K times over, as every network works sample by sample; the loss, which
does not, is a thousandth of an update. What a group keeps is counted for all groups of a window.

Legend: K candidates, c chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from dipole_trainer.compute.micro_batches import MicroBatches
from dipole_trainer.compute.peak_memory import PeakMemory
from dipole_trainer.features import FeatureExtractor
from dipole_trainer.methods.base import FeatureSets
from dipole_trainer.planning.fake_models import FakeModels
from dipole_trainer.ranking.selection import GroupOrder, Selection
from dipole_trainer.spec import PromptSpec, TrainSpec
from dipole_trainer.training.chunked_gradient import OutputGradients
from dipole_trainer.training.rollout import Rollout, SampledGroup

T = TypeVar("T")
PROMPT = PromptSpec(prompt="a photograph")
PHASES = ("generate", "decode", "features", "reference", "backward")


def _count_cpu_attention(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **more: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _count_cpu_attention_backward(
    grad: Any, query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **more: Any
) -> int:
    return int(sdpa_backward_flop_count(grad, query, key, value))  # type: ignore[no-untyped-call]


# fake tensors on "cpu" take this kernel, whose memory is a GPU's flash attention's; torch's counter knows the others
FLOP_FORMULAS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _count_cpu_attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _count_cpu_attention_backward,
}


@dataclass(frozen=True)
class PhaseCost:
    """Of one phase of one update: floating-point operations, and bytes at its peak beyond what lives on."""

    operations: int
    peak_bytes: int


NO_COST = PhaseCost(0, 0)


@dataclass(frozen=True)
class UpdateCost:
    """One update of a job on one device, every sample drawn again for its gradient. `phases` by the names of PHASES."""

    phases: dict[str, PhaseCost]
    graph: PhaseCost  # of one sample's graph: operations to make it again, bytes to keep it; 0 where none is kept
    chunk_size: int
    weights_bytes: int
    trained_bytes: int
    summed_bytes: int  # of gradients that chunks after the first are added to
    group_bytes: int  # what a group keeps on the device until its gradient is taken

    @property
    def operations(self) -> int:
        return sum(each.operations for each in self.phases.values())

    def peak_bytes(self, kept: int = 0) -> int:
        """Of any phase, with the graphs of so many samples kept, which are let go chunk by chunk as they are used."""
        held, chunk = kept * self.graph.peak_bytes, self.chunk_size * self.graph.peak_bytes
        backward = self.phases["backward"].peak_bytes
        return max(
            backward - self.summed_bytes + max(held - chunk, 0),  # the first chunk, whose gradient is not added to any
            backward + max(held - 2 * chunk, 0),
            *(phase.peak_bytes + held for name, phase in self.phases.items() if name != "backward"),
        )


class _PhaseCounter:
    """Adds up operations and keeps the peak of each phase; phases may be entered from within others."""

    def __init__(self) -> None:
        self.flops = FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS)
        self.memory = PeakMemory()
        self.operations = dict.fromkeys(PHASES, 0)
        self.peaks = dict.fromkeys(PHASES, 0)
        self._open: list[str] = []
        self._counted = 0

    def run_phase(self, name: str, call: Callable[[], T]) -> T:
        self._settle()
        self._open.append(name)
        try:
            return call()
        finally:
            self._settle()
            self._open.pop()

    def _settle(self) -> None:
        """Put what was counted since the last call on the phase that is open."""
        total = self.flops.get_total_flops()
        if self._open:
            name = self._open[-1]
            self.operations[name] += total - self._counted
            self.peaks[name] = max(self.peaks[name], self.memory.peak_bytes)
        self._counted = total
        self.memory.start_peak()


class _CountedFeatures:
    """φ whose cost outside of a gradient is the phase `features`."""

    def __init__(self, phi: FeatureExtractor, counter: _PhaseCounter) -> None:
        self._phi, self._counter = phi, counter
        if encode_pixels := getattr(phi, "encode_pixels", None):
            self.encode_pixels = partial(self._count, encode_pixels)

    def __call__(self, x: Tensor, *, prompt: str, seeds: Sequence[int]) -> dict[str, Tensor]:
        return self._count(partial(self._phi, prompt=prompt, seeds=seeds), x)

    def _count(self, encode: Callable[[Tensor], dict[str, Tensor]], x: Tensor) -> dict[str, Tensor]:
        if torch.is_grad_enabled():
            return encode(x)
        return self._counter.run_phase("features", lambda: encode(x))


class _CountedRollout(Rollout):
    """A rollout of fake tensors, of which nobody can see whether one is finite. Counts what a graph takes."""

    def __init__(self, spec: TrainSpec, models: FakeModels, counter: _PhaseCounter) -> None:
        phi = _CountedFeatures(models.phi, counter)
        super().__init__(spec, models.generator, phi, MicroBatches(spec.candidates))
        self.graph_operations = self.graph_bytes = 0
        self._counter = counter

    def leave_out_flawed(self, drawn: SampledGroup) -> None:
        pass

    def sample_with_graph(
        self, drawn: SampledGroup, rows: list[int], *, needs_features: bool
    ) -> tuple[Tensor, FeatureSets]:
        flops, memory = self._counter.flops, self._counter.memory
        operations, held = flops.get_total_flops(), memory.alive_bytes
        made = super().sample_with_graph(drawn, rows, needs_features=needs_features)
        self.graph_operations = flops.get_total_flops() - operations
        self.graph_bytes = memory.alive_bytes - held
        return made


@dataclass(frozen=True)
class _AssumedGradients(OutputGradients):
    """A gradient whose values nobody knows: of ordinary size, in the first `rows` samples."""

    rows: int

    def find_nonzero_rows(self) -> tuple[list[int], float]:
        return list(range(self.rows)), 1.0


def measure_update(spec: TrainSpec, models: FakeModels, *, chunk_size: int | None = None) -> UpdateCost:
    """What one update of the job takes on one device, all its prompts counted."""
    chunk = min(chunk_size or spec.chunk_size, spec.candidates)
    # fp16 scales its gradients by their values, which fakes have not; it costs what bf16 costs
    precision = "bf16" if spec.precision == "fp16" else spec.precision
    one_chunk = spec.model_copy(update={"candidates": chunk, "precision": precision})
    counter = _PhaseCounter()
    rollout = _CountedRollout(one_chunk, models, counter)
    with models.mode:
        models.generator.embed_prompt(PROMPT.prompt)  # once a prompt, and kept
        with counter.memory, counter.flops:
            kept = _run_group(one_chunk, rollout, counter)
    scale = dict.fromkeys(PHASES, spec.prompts_per_step * spec.candidates / chunk)
    if anchors := getattr(rollout.settings, "anchors", None):  # a method that gives the others no gradient
        scale["backward"] = spec.prompts_per_step * anchors / min(anchors, chunk)
    # from the second chunk on the sum of gradients is there beside a chunk's own
    summed = models.trained_bytes if spec.candidates > chunk else 0
    extra = {"backward": summed}
    scale["backward"] *= rollout.settings.moves_share()
    graph = NO_COST
    if rollout.moves_every_sample:
        graph = PhaseCost(rollout.graph_operations // chunk, rollout.graph_bytes // chunk)
    return UpdateCost(
        graph=graph,
        phases={
            name: PhaseCost(round(counter.operations[name] * scale[name]), counter.peaks[name] + extra.get(name, 0))
            for name in PHASES
        },
        chunk_size=chunk,
        weights_bytes=models.weights_bytes,
        trained_bytes=models.trained_bytes,
        summed_bytes=summed,
        group_bytes=kept * spec.candidates // chunk,
    )


def _run_group(spec: TrainSpec, rollout: Rollout, counter: _PhaseCounter) -> int:
    """One group from noise to gradient; the bytes that it keeps until its gradient is taken."""
    drawn = counter.run_phase("generate", lambda: rollout.sample_group(0, 0, PROMPT))
    if spec.candidates_as != "latents":
        counter.run_phase("decode", lambda: rollout.decode_on_device(drawn))
    counter.run_phase("reference", lambda: rollout.prepare_features(drawn))
    kept = {
        id(each): each.nbytes for each in (drawn.noise, drawn.x, drawn.ranked_latents, drawn.x_ref) if each is not None
    }
    kept |= {id(each): each.nbytes for phi in (drawn.phi_ranked, drawn.phi_ref) for each in phi.values()}
    counter.run_phase("backward", lambda: rollout.carry_back(drawn, _differentiate(spec, rollout, drawn)))
    return sum(kept.values())


def _differentiate(spec: TrainSpec, rollout: Rollout, drawn: SampledGroup) -> OutputGradients:
    """The loss's gradient in x and φ; of a method without features in x alone, where nothing but x decides the cost."""
    rows = min(getattr(rollout.settings, "anchors", spec.candidates), spec.candidates)
    if not rollout.settings.uses_features():
        return _AssumedGradients(x=torch.empty_like(drawn.x), phi={}, rows=rows)
    half = max(1, spec.candidates // 2)
    chosen = Selection(positives=tuple(range(half)), negatives=tuple(range(spec.candidates - half, spec.candidates)))
    order = GroupOrder(np.arange(spec.candidates, dtype=np.float64), chosen)
    _, found = rollout.differentiate_loss(drawn, order, on_policy=spec.max_staleness == 0)
    return _AssumedGradients(x=found.x, phi=found.phi, rows=rows)
