"""One group's update, ours against the loop as released: one gradient; time, peak memory and operations.

    OMP_NUM_THREADS=1 python benchmarks/step.py --json out/step.json          small shapes, a CPU
    python benchmarks/step.py --size real --plot docs/update.png       counted at real shapes, nothing computed
    python benchmarks/step.py --size real --device cuda --precision bf16            real shapes, random weights, a GPU

Three updates are compared, each from K noises of one prompt to the gradient of DrPO's loss in the adapter: SD-Turbo in
the latent MAE (`sd`), SDXL-Turbo in ViT-MAE on decoded pixels (`sdxl`), SDXL-Turbo in the teacher U-Net
(`sdxl-teacher`), with the paper's K, P and N, of which the teacher's recipe in examples/ has more. Both decode images
for the reward, whose own time is no part of this: the order is given. `released.py` is the other loop, and says what it
does.

Ours is dipole_trainer.training.rollout as a job runs it, in chunks: `lean` draws every sample again for its gradient;
`auto` keeps the graphs of the drawing as far as its budget goes. The frontier has budgets from none to all.

Before a ratio is printed it is asserted that the gradients agree: in float64 to rounding (on fewer candidates), in the
run's precision within a bound, as chunks round φ differently and the narrow radii magnify that; and `auto` has the
gradient of `lean` to the last bit.

Counted at real shapes, `all, as latents` is the trainer's share where the reward's device decodes (candidates_as).

Ratios are released / ours for time and operations, ours / released for memory. Peak memory is that of tensors alive at
once beyond weights: counted per storage on the CPU, by the allocator on CUDA. The released loop's second U-Net, which
ours does not have, is not in it. On one thread of a CPU time is the process's own, so that other work disturbs it less.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import shapes
import torch
from released import ReleasedLoop
from torch import Tensor
from torch.utils.checkpoint import set_checkpoint_early_stop
from torch.utils.flop_counter import FlopCounterMode

from dipole_trainer.compute.graph_budget import GraphBudget
from dipole_trainer.compute.micro_batches import MicroBatches
from dipole_trainer.compute.peak_memory import PeakMemory
from dipole_trainer.features.teacher_unet import load_teacher_unet
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.planning.fake_models import build_fake_models
from dipole_trainer.planning.update_cost import FLOP_FORMULAS, measure_update
from dipole_trainer.ranking.selection import GroupOrder, Selection
from dipole_trainer.spec import PromptSpec, TrainSpec
from dipole_trainer.training.rollout import Rollout

PROMPT = PromptSpec(prompt="a red circle")
BOUNDS = {"fp32": 3e-2, "bf16": 1e-1, "fp16": 1e-1}  # of the gradients' relative difference, ours in chunks
DOUBLE_BOUND, DOUBLE_CANDIDATES = 1e-8, 4
NEEDED_GIB = {"sd": 40, "sdxl": 100, "sdxl-teacher": 60}  # at real shapes


@dataclass(frozen=True)
class Case:
    """A published recipe: its networks at either size, its features, K, P and N, and the example's chunk."""

    name: str
    title: str
    sizes: dict[str, str]
    features: str
    candidates: int
    sides: int
    chunk: int

    def spec(self, args: argparse.Namespace, candidates: int | None = None, precision: str | None = None) -> TrainSpec:
        count = candidates or self.candidates
        sides = min(self.sides, count // 2)
        return TrainSpec.model_validate({
            "prompts": [PROMPT], "rewards": [{"name": "r"}], "candidates": count, "prompts_per_step": 1,
            "model": self.sizes["real"], "features": {"type": self.features}, "chunk_size": args.chunk or self.chunk,
            "precision": precision or args.precision,
            "method": {"drpo": {"positives": sides, "negatives": sides}},
        })  # fmt: skip

    def build(self, args: argparse.Namespace, spec: TrainSpec) -> tuple[OneStepGenerator, Any]:
        """The generator, its adapter disturbed, and φ."""
        size = self.sizes[args.size]
        generator = shapes.generator(size, spec, args.device)
        if self.features == "latent_mae":
            return generator, shapes.latent_mae(size, args.device)
        if self.features == "vit_mae":
            return generator, shapes.vit_mae(size, generator)
        return generator, load_teacher_unet(spec.features, generator, Path())


SDXL = {"small": "small-sdxl", "real": "sdxl-turbo"}
CASES = {
    case.name: case
    for case in (
        Case("sd", "SD-Turbo, latent MAE", {"small": "small", "real": "sd-turbo"}, "latent_mae", 24, 8, 4),
        Case("sdxl", "SDXL-Turbo, ViT-MAE", SDXL, "vit_mae", 16, 8, 4),
        Case("sdxl-teacher", "SDXL-Turbo, teacher U-Net", SDXL, "teacher_unet", 16, 8, 4),
    )
}

Update = Callable[[], list[Tensor]]


class Ours:
    """The loop's update with a budget for graphs."""

    def __init__(self, spec: TrainSpec, generator: OneStepGenerator, phi: Any, budget: int) -> None:
        self.rollout = Rollout(spec, generator, phi, MicroBatches(spec.chunk_size), GraphBudget(budget))
        self.order = GroupOrder(np.zeros(spec.candidates), choose(spec))
        self.graphs_used = 0

    def __call__(self) -> list[Tensor]:
        drawn = self.rollout.sample_group(0, 0, PROMPT)
        self.rollout.decode_group(drawn)
        self.rollout.prepare_features(drawn)
        _, found = self.rollout.group_gradient(drawn, self.order, on_policy=True)
        assert found is not None
        self.graphs_used = drawn.graphs_used
        return found


def choose(spec: TrainSpec) -> Selection:
    """A fixed order's best and worst."""
    positives, negatives = spec.method.settings.sides(spec.candidates)
    order = torch.randperm(spec.candidates, generator=torch.Generator().manual_seed(spec.candidates)).tolist()
    return Selection(tuple(order[:positives]), tuple(order[-negatives:]))


def make_released(spec: TrainSpec, generator: OneStepGenerator, phi: Any) -> Update:
    loop = ReleasedLoop(generator, phi, spec, PROMPT.prompt)
    drawn = Rollout(spec, generator, phi, MicroBatches(spec.chunk_size)).sample_group(0, 0, PROMPT)
    return lambda: loop(drawn.noise, list(drawn.seeds), choose(spec))


# ---- one gradient -----------------------------------------------------------------------------------------------


@contextmanager
def double_precision(generator: OneStepGenerator, phi: Any) -> Iterator[None]:
    """Inside, what is made float32 is made float64, networks and all."""
    networks = [generator.denoiser, generator.vae, generator.pipeline.text_encoder, getattr(generator.pipeline,
                "text_encoder_2", None), getattr(phi, "encoder", None), getattr(phi, "model", None)]  # fmt: skip
    for network in networks:
        if network is not None:
            network.double()
    generator.forget_prompts()
    single = torch.Tensor.float
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    generator._dtype, generator._autocast = torch.float64, nullcontext  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.float = single  # type: ignore[method-assign]


def check_double(case: Case, args: argparse.Namespace) -> float:
    """The relative difference of the two gradients in float64, asserted to be rounding."""
    spec = case.spec(args, DOUBLE_CANDIDATES, "fp32").model_copy(update={"chunk_size": 2})
    generator, phi = case.build(args, spec)
    with double_precision(generator, phi):
        found = measuring.difference(make_released(spec, generator, phi)(), Ours(spec, generator, phi, 2**50)())
    assert found < DOUBLE_BOUND, f"{case.name}: the gradients differ by {found:.1e} in float64"
    return found


# ---- measured ---------------------------------------------------------------------------------------------------


def count_operations(update: Update) -> tuple[list[Tensor], int]:
    """The gradient, and operations."""
    with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as flops:
        return update(), int(flops.get_total_flops())


def take_times(updates: dict[str, Update], args: argparse.Namespace) -> dict[str, float]:
    """Median seconds of each, taken in turn so that what else the machine does hits all alike."""
    alone = args.device == "cpu" and torch.get_num_threads() == 1
    now = time.process_time if alone else time.perf_counter
    taken: dict[str, list[float]] = {name: [] for name in updates}
    for _ in range(args.repeats):
        for name, update in updates.items():
            began = now()
            update()
            if args.device != "cpu":
                torch.cuda.synchronize()
            taken[name].append(now() - began)
    return {name: statistics.median(each) for name, each in taken.items()}


def measure(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """Figures of the released loop, and of ours at each budget, the first of which keeps nothing."""
    double = check_double(case, args) if args.size == "small" else None
    spec = case.spec(args)
    generator, phi = case.build(args, spec)
    ours = {"0": Ours(spec, generator, phi, 0)}
    everything = Ours(spec, generator, phi, 2**50)
    everything()
    each = everything.rollout.graphs._sample_bytes
    assert each is not None, "the drawing measured it"
    for share in args.shares:
        ours[f"{share:g}"] = Ours(spec, generator, phi, round(share * spec.candidates) * each)
    updates: dict[str, Update] = {"released": make_released(spec, generator, phi), **ours}
    gradients, operations, peaks = {}, {}, {}
    for name, update in updates.items():
        (gradients[name], operations[name]), peaks[name] = measuring.peak(
            partial(count_operations, update), args.device
        )
    for name in ours:
        same = all(map(torch.equal, gradients[name], gradients["0"]))
        assert same, f"{case.name}: keeping {name} of the graphs changes the gradient"
    gap = measuring.difference(gradients["released"], gradients["0"])
    assert gap < BOUNDS[args.precision], f"{case.name}: the gradients differ by {gap:.1e}"
    del gradients
    seconds = take_times(updates, args)
    second_unet = sum(each.nbytes for each in generator.denoiser.parameters() if not each.requires_grad)
    rows = [row_of(name, seconds, peaks, operations, getattr(updates[name], "graphs_used", None)) for name in updates]
    row = {"case": case.name, "title": case.title, "candidates": spec.candidates, "chunk": spec.chunk_size,
           "graph_bytes": each, "second_unet_bytes": second_unet, "difference_float64": double,
           "difference": gap, "rows": rows}  # fmt: skip
    tell(row, args)
    return row


def row_of(name: str, seconds: Any, peaks: Any, operations: Any, kept: int | None) -> dict[str, Any]:
    """`kept` is of ours alone."""
    base = "released"
    return {
        **({} if kept is None else {"kept": kept}),
        "name": name, "seconds": seconds[name], "bytes": peaks[name], "operations": operations[name],
        "time": seconds[base] / seconds[name], "memory": peaks[name] / peaks[base],
        "by_operations": operations[base] / operations[name],
    }  # fmt: skip


def tell(row: dict[str, Any], args: argparse.Namespace) -> None:
    double = row["difference_float64"]
    print(f"\n{row['title']}: K {row['candidates']}, chunks of {row['chunk']}, {args.device}, {args.precision}, "
          f"{torch.get_num_threads()} threads; gradients differ by {row['difference']:.1e}"
          + (f", in float64 by {double:.1e}" if double is not None else "")
          + f"; the released loop's second U-Net takes {row['second_unet_bytes'] / 2**20:.1f} MiB more")  # fmt: skip
    print(f"{'graphs kept':>12} {'s':>8} {'MiB':>9} {'GFLOP':>9} {'time':>6} {'memory':>7} {'by operations':>14}")
    for each in row["rows"]:
        name = each["name"] if each["name"] == "released" else f"{each['kept']} of {row['candidates']}"
        print(f"{name:>12} {each['seconds']:8.3f} {each['bytes'] / 2**20:9.1f} {each['operations'] / 1e9:9.2f} "
              f"{each['time']:6.2f} {each['memory']:7.2f} {each['by_operations']:14.2f}", flush=True)  # fmt: skip


# ---- counted ----------------------------------------------------------------------------------------------------


def count(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """Operations and memory at real shapes in bf16, on tensors that have neither values nor memory.

    Beside the released loop stands the same with every activation recomputed, which METHOD's table counts.
    """
    spec = case.spec(args, precision="bf16")
    nowhere = Path("no-models-here")
    cost = measure_update(spec, build_fake_models(spec, nowhere))
    models, chosen = build_fake_models(spec, nowhere), choose(spec)
    with models.mode:
        noise = models.generator.draw_noise(range(spec.candidates))
        loop = ReleasedLoop(models.generator, models.phi, spec, PROMPT.prompt)
        rows = []
        # torch ends the recomputation of a block where nothing more of it is needed
        for name, stops_early in (("released", True), ("as a whole", False)):
            with (
                set_checkpoint_early_stop(stops_early),
                PeakMemory() as memory,
                FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as flops,
            ):
                loop(noise, list(range(spec.candidates)), chosen)
            rows.append({"name": name, "operations": flops.get_total_flops(), "bytes": memory.peak_bytes})
    released = rows[0]
    for share in (0.0, *args.shares):
        kept = round(share * spec.candidates)
        rows.append({
            "name": f"{kept} of {spec.candidates}", "kept": kept,
            "operations": cost.operations - kept * cost.graph.operations,
            "bytes": cost.peak_bytes(kept) + cost.group_bytes,
        })  # fmt: skip
    if not hasattr(models.phi, "encode_pixels"):
        kept = spec.candidates
        there = measure_update(spec.model_copy(update={"candidates_as": "latents"}), build_fake_models(spec, nowhere))
        rows.append({
            "name": "all, as latents", "kept": kept, "operations": there.operations - kept * there.graph.operations,
            "bytes": there.peak_bytes(kept) + there.group_bytes,
        })  # fmt: skip
    for each in rows:
        each["memory"] = each["bytes"] / released["bytes"]
        each["by_operations"] = released["operations"] / each["operations"]
    print(f"\n{case.title}: K {spec.candidates}, chunks of {spec.chunk_size}, bf16, counted at real shapes; "
          f"a sample's graph takes {cost.graph.peak_bytes / 2**30:.2f} GiB")  # fmt: skip
    print(f"{'graphs kept':>15} {'GiB':>9} {'TFLOP':>9} {'memory':>7} {'by operations':>14}")
    for each in rows:
        print(f"{each['name']:>15} {each['bytes'] / 2**30:9.2f} {each['operations'] / 1e12:9.1f} {each['memory']:7.2f} "
              f"{each['by_operations']:14.2f}", flush=True)  # fmt: skip
    return {"case": case.name, "title": case.title, "candidates": spec.candidates,
            "graph_bytes": cost.graph.peak_bytes, "rows": rows}  # fmt: skip


def plot(rows: list[dict[str, Any]], target: Path) -> None:
    """Time, or operations where nothing was timed, against memory: both over the released loop's, a panel a case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(rows), figsize=(3.6 * len(rows), 3.4), constrained_layout=True, squeeze=False)
    what = "time" if "time" in rows[0]["rows"][0] else "by_operations"
    for axis, row in zip(axes[0], rows, strict=True):
        ours = [each for each in row["rows"] if "kept" in each]
        x, y = [each["memory"] for each in ours], [1 / each[what] for each in ours]
        axis.plot(x, y, "-o", color="#1b7f5c", ms=5)
        for each, at, height in zip(ours, x, y, strict=True):
            label = "lean" if not each["kept"] else f"{each['kept']} of {row['candidates']}"
            axis.annotate(label, (at, height), textcoords="offset points", xytext=(5, 5), fontsize=8)
        axis.plot([1], [1], "s", color="#8a93a6")
        axis.annotate("released", (1, 1), textcoords="offset points", xytext=(5, 5), fontsize=8)
        axis.set_title(row["title"], fontsize=10)
        axis.set_xlabel("peak memory / released")
        axis.set_xlim(0, 1.3 * max(1, *x))
        axis.set_ylim(0.93 * min(1, *y), 1.05 * max(1, *y))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel(f"{what.removeprefix('by_')} / released")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", choices=tuple(CASES), nargs="+", default=list(CASES))
    parser.add_argument("--size", choices=("small", "real"), default="small")
    parser.add_argument("--precision", choices=tuple(BOUNDS), default="fp32")
    parser.add_argument("--chunk", type=int, help="samples worked on at once; the recipe's if absent")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.5, 0.75, 1.0], help="of the graphs, kept")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--force", action="store_true", help="skip the look at free memory")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="draw the frontier of time and memory")
    args = parser.parse_args()
    is_counted = args.size == "real" and args.device == "cpu"
    rows = []
    for name in args.cases:
        if args.size == "real" and not is_counted and not args.force:
            measuring.require_memory(name, NEEDED_GIB[name], args.device)
        rows.append((count if is_counted else measure)(CASES[name], args))
    measuring.write(args, rows=rows)
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    main()
