"""A job's plan: whether it fits a device, the largest chunk that does, a range of hours, how often rewards are asked.

Operations and bytes are counted (update_cost.py). Times are not: a range of shares of the device's peak rate stands for
kernels, attention and memory traffic, until somebody measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dipole.errors import InvalidInput
from dipole.protocol.validation import first_error
from dipole_trainer.compute.graph_budget import choose_budget
from dipole_trainer.planning.devices import MEASURED_UTILISATION, UTILISATION, Device
from dipole_trainer.planning.fake_models import build_fake_models
from dipole_trainer.planning.plans import GraphPlan, JobPlan, MemoryPlan
from dipole_trainer.planning.update_cost import PROMPT, UpdateCost, measure_update
from dipole_trainer.spec import MAX_STEPS, Precision, TrainSpec
from dipole_trainer.weights.base_models import base_of_name

# of the request that creates a job, what says nothing of its cost
UNCOSTED_FIELDS = (
    "training_file", "validation_file", "suffix", "metadata", "integrations", "allow_unready", "initial_checkpoint",
)  # fmt: skip
CHECKPOINT_COPIES = 3  # of what is trained, in float32: the weights and Adam's two moments


def parse_job(body: dict[str, Any]) -> TrainSpec:
    """The spec of a request to create a job, as far as its cost goes. Raises InvalidInput."""
    wanted = {name: value for name, value in body.items() if name not in UNCOSTED_FIELDS}
    batch = (wanted.pop("hyperparameters", None) or {}).get("batch_size", "auto")
    if batch != "auto":
        wanted.setdefault("prompts_per_step", batch)
    if not wanted.get("pairs_file") and not wanted.get("replay_job"):
        if not wanted.get("prompts"):
            wanted["prompts"] = [{"prompt": "a photograph"}]
            # they follow from prompts that are not here: the most that are chosen
            wanted.setdefault("steps", MAX_STEPS)
        wanted["rewards"] = wanted.get("rewards") or [{"name": "reward"}]
    if isinstance(model := wanted.get("model"), str):
        wanted["model"] = base_of_name(model)  # merged weights cost what the base's cost
    # evaluations are not planned
    wanted["evaluation"] = {}
    try:
        return TrainSpec.model_validate(wanted)
    except ValidationError as error:
        found = first_error(error, "")
        raise InvalidInput(f"{found.path or 'job'}: {found.message}", field=found.path or None) from None


def plan_job(
    spec: TrainSpec, *, models_dir: Path, devices: Sequence[Device], chunk_size: int | None = None
) -> list[JobPlan]:
    """A plan for each device, of a job of one process, in the precision that it would compute in there.

    Raises InvalidInput for a model of unknown shape.
    """
    precisions = [spec.precision or device.default_precision() for device in devices]
    costs = {each: _cost_precision(spec, each, models_dir, chunk_size) for each in dict.fromkeys(precisions)}
    return [_plan_device(spec, costs[each], device) for each, device in zip(precisions, devices, strict=True)]


@dataclass(frozen=True)
class _PrecisionCost:
    """What an update takes in one precision, on whichever device."""

    precision: Precision
    update: UpdateCost
    prompt_bytes: int
    is_published_shape: bool


def _cost_precision(spec: TrainSpec, precision: Precision, models_dir: Path, chunk_size: int | None) -> _PrecisionCost:
    spec = spec.model_copy(update={"precision": precision})
    models = build_fake_models(spec, models_dir)
    update = measure_update(spec, models, chunk_size=chunk_size)
    prompt_bytes = models.generator.cached_prompts * models.generator.embed_prompt(PROMPT.prompt).nbytes
    return _PrecisionCost(precision, update, prompt_bytes, models.is_published_shape)


def describe_limits(spec: TrainSpec, plan: JobPlan) -> list[str]:
    """What the numbers do not say, in sentences."""
    lines = [
        f"Operations and memory are counted on the network's shapes; times are {UTILISATION[0]:.0%} to "
        f"{UTILISATION[1]:.0%} of a card's peak rate, and nobody has measured them yet.",
        f"Each reward is asked {plan.ranking_requests_per_update} times an update with {plan.images_per_request} "
        "images; slower answers than the table's make training wait. Evaluations are not in it.",
    ]
    if plan.is_published_shape:
        lines.append(f"{spec.model} is not on this machine: the plan is of its published shape.")
    if spec.precision is None:
        lines.append("The job names no precision: bf16 is planned for GPUs that have it, fp32 for the others.")
    elif spec.precision == "fp32":
        lines.append("fp32 is slow on a GPU: bf16 takes half the memory and a fraction of the time.")
    return lines


def _plan_device(spec: TrainSpec, costed: _PrecisionCost, device: Device) -> JobPlan:
    cost = costed.update
    memory = _plan_memory(spec, cost, device, costed.prompt_bytes)
    graphs = _plan_graphs(spec, cost, device, memory)
    operations = cost.operations - graphs.kept * cost.graph.operations
    low, high = MEASURED_UTILISATION if device.is_measured else UTILISATION
    rate = device.rate(costed.precision)
    seconds = (operations / (rate * high), operations / (rate * low))
    return JobPlan(
        model=spec.model,
        is_published_shape=costed.is_published_shape,
        device=device.name,
        precision=costed.precision,
        chunk_size=cost.chunk_size,
        memory=memory,
        graphs=graphs,
        fits=memory.total <= memory.usable,
        largest_chunk=_largest_chunk(spec, cost, memory),
        phases={
            name: {"teraflop": phase.operations / 1e12, "peak_bytes": phase.peak_bytes}
            for name, phase in cost.phases.items()
        },
        teraflop_per_update=operations / 1e12,
        images_per_update=spec.prompts_per_step * spec.candidates,
        seconds_per_update=seconds,
        hours=(seconds[0] * spec.steps / 3600, seconds[1] * spec.steps / 3600),
        ranking_requests_per_update=spec.prompts_per_step,
        images_per_request=spec.candidates,
        requests_per_minute=(60 * spec.prompts_per_step / seconds[1], 60 * spec.prompts_per_step / seconds[0]),
        disk_bytes=_plan_disk(spec, cost),
    )


def _plan_memory(spec: TrainSpec, cost: UpdateCost, device: Device, prompt_bytes: int) -> MemoryPlan:
    groups = cost.group_bytes * spec.prompts_per_step * (1 + spec.max_staleness)
    parts = {
        "weights": cost.weights_bytes,
        # Adam's two moments, the sum of gradients, and the moving average where there is one
        "optimizer": (3 if spec.optimizer.ema is None else 4) * cost.trained_bytes,
        "groups": groups,
        "prompts": prompt_bytes,
        "peak_phase": cost.peak_bytes(),
    }
    return MemoryPlan(**parts, total=sum(parts.values()), usable=device.usable_bytes)


def _plan_graphs(spec: TrainSpec, cost: UpdateCost, device: Device, memory: MemoryPlan) -> GraphPlan:
    """Whole micro-batches as the budget has room for them; none where memory would run out over them."""
    budget = choose_budget(spec, None if device.is_cpu else max(0, device.usable_bytes - cost.weights_bytes))
    each, chunk = cost.graph.peak_bytes, cost.chunk_size
    kept = min(budget // (each * chunk) * chunk, spec.prompts_per_step * spec.candidates) if each else 0
    total = memory.total - memory.peak_phase + cost.peak_bytes(kept)
    if total > memory.usable:
        kept, total = 0, memory.total
    return GraphPlan(kept, each, total, kept * cost.graph.operations / 1e12)


def _largest_chunk(spec: TrainSpec, cost: UpdateCost, memory: MemoryPlan) -> int:
    """A phase's peak grows with the chunk, but for the sums of gradients in it."""
    summed = 2 * cost.trained_bytes
    per_sample = max(memory.peak_phase - summed, 1) / cost.chunk_size
    room = memory.usable - (memory.total - memory.peak_phase) - summed
    return max(0, min(spec.candidates, int(room // per_sample)))


def _plan_disk(spec: TrainSpec, cost: UpdateCost) -> int:
    """Checkpoints that are kept, the best among them, the export, and what is recorded."""
    copies = CHECKPOINT_COPIES + (spec.optimizer.ema is not None)
    checkpoints = (spec.keep_checkpoints + 1) * copies * cost.trained_bytes
    merged = cost.weights_bytes if spec.export_merged else 0
    recorded = cost.group_bytes * spec.prompts_per_step * spec.steps if spec.record_candidates else 0
    return checkpoints + 2 * cost.trained_bytes + merged + recorded
