"""Graphs that are kept from the drawing: the gradient is that of drawing again, to the last bit."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import ViTMAEConfig, ViTMAEModel

from dipole_trainer import features, generators
from dipole_trainer.compute.graph_budget import CPU_BUDGET_BYTES, GIB, GraphBudget, choose_budget
from dipole_trainer.compute.micro_batches import MicroBatches
from dipole_trainer.compute.peak_memory import PeakMemory
from dipole_trainer.features.preprocessing import ImagePreprocessor
from dipole_trainer.features.vit_mae import make_vit_mae_features
from dipole_trainer.ranking.in_process import InProcessRanker
from dipole_trainer.ranking.selection import GroupOrder, Selection
from dipole_trainer.spec import PromptSpec, TrainSpec
from dipole_trainer.storage import job_layout
from dipole_trainer.training import session
from dipole_trainer.training.rollout import Rollout, SampledGroup

NOWHERE = Path("nowhere")
PROMPT = PromptSpec(prompt="a red circle")
K, CHUNK = 6, 2
ORDER = GroupOrder(np.array([0.1, 0.9, np.nan, 1.5, 0.4, -1.0]), Selection((3, 1), (5, 0)))
PLENTY = 2**40


def make_spec(**changes: Any) -> TrainSpec:
    base: dict[str, Any] = {
        "prompts": [PROMPT], "rewards": [{"name": "bright"}], "candidates": K, "prompts_per_step": 1,
        "chunk_size": CHUNK, "method": {"drpo": {"positives": 2, "negatives": 2}},
    }  # fmt: skip
    return TrainSpec.model_validate({**base, **changes})


def make_vit_mae(generator: Any) -> Any:
    torch.manual_seed(0)
    model = ViTMAEModel(
        ViTMAEConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=32,
            patch_size=8,
        )
    )
    return make_vit_mae_features(model, ImagePreprocessor(32, *torch.full((2, 3, 1, 1), 0.5)), generator, ())


class Case:
    """One job's networks, their trained weights disturbed, and rollouts of them with any budget."""

    def __init__(self, **changes: Any) -> None:
        reads_pixels = changes.pop("reads_pixels", False)
        self.spec = make_spec(**changes)
        self.generator = generators.build_generator(self.spec, models_dir=NOWHERE)
        draw = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in self.generator.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.01)
        made = features.build_features(self.spec.features, self.generator, models_dir=NOWHERE)
        self.phi = make_vit_mae(self.generator) if reads_pixels else made

    def rollout(self, budget: int, micro_batches: MicroBatches | None = None) -> Rollout:
        micro_batches = micro_batches or MicroBatches(self.spec.chunk_size)
        return Rollout(self.spec, self.generator, self.phi, micro_batches, GraphBudget(budget))


@functools.cache
def find_case(name: str) -> Case:
    """For tests that leave its weights as they are."""
    return Case(**CASES[name])


def draw(rollout: Rollout) -> SampledGroup:
    """A group on its way as far as it goes before its rankings come."""
    drawn = rollout.sample_group(0, 0, PROMPT)
    rollout.decode_group(drawn)
    rollout.prepare_features(drawn)
    return drawn


def gradient(rollout: Rollout, drawn: SampledGroup, *, on_policy: bool = True) -> list[Tensor]:
    loss, found = rollout.group_gradient(drawn, ORDER, on_policy=on_policy)
    assert found is not None
    return [loss.total, *found]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


CASES: dict[str, dict[str, Any]] = {
    "drpo": {},
    "random": {"method": {"type": "random"}},
    "dpo": {"method": {"type": "dpo", "dpo": {"positives": 2, "negatives": 2}}},
    "teacher": {"features": {"type": "teacher_unet", "keys": ["mid_block"], "pool": 1}},
    "pixels": {"reads_pixels": True},
    "full": {"tune": "full", "features": {"type": "latents"}},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "uneven": {"chunk_size": 4},
}


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_that_of_drawing_again(case: str) -> None:
    """To the last bit, whether all graphs were kept, one micro-batch's or none; afterwards nothing is held."""
    made = find_case(case)
    lean, chunk = made.rollout(0), made.spec.chunk_size
    expected = gradient(lean, draw(lean))
    assert sum(float(each.abs().sum()) for each in expected[1:]) > 0
    everything = made.rollout(PLENTY)
    drawn = draw(everything)
    each = everything.graphs.held_bytes // K
    assert equal(gradient(everything, drawn), expected)
    assert drawn.graphs_used == K
    assert everything.graphs.held_bytes == 0
    some = made.rollout(chunk * each)
    drawn = draw(some)
    assert some.graphs.held_bytes == chunk * each
    assert equal(gradient(some, drawn), expected)
    assert drawn.graphs_used == chunk


@pytest.mark.parametrize("method", ["grpo", "pso", "sft"])
def test_nothing_is_kept_where_some_samples_have_no_gradient(method: str) -> None:
    """Which ones is known when rankings are: they are drawn again without those."""
    made = Case(method={"type": method})
    rollout = made.rollout(PLENTY)
    drawn = draw(rollout)
    assert rollout.graphs.held_bytes == 0
    lean = made.rollout(0)
    assert equal(gradient(rollout, drawn), gradient(lean, draw(lean)))


@pytest.mark.parametrize("case", ["drpo", "pixels", "dpo"])
def test_stale_samples_are_drawn_again_with_a_graph(case: str) -> None:
    """Once and not twice; the graphs of the weights that drew them first are let go."""
    made = Case(**CASES[case])
    lean, auto = made.rollout(0), made.rollout(PLENTY)
    groups = [draw(lean), auto.sample_group(0, 0, PROMPT, keep_graphs=False)]
    auto.prepare_features(groups[1])
    assert auto.graphs.held_bytes == 0
    with torch.no_grad():
        for parameter in made.generator.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    expected = gradient(lean, groups[0], on_policy=False)
    assert equal(gradient(auto, groups[1], on_policy=False), expected)
    assert groups[1].graphs_used == K


def test_graphs_of_weights_that_moved_are_refused() -> None:
    """torch sees that a tensor it saved was changed: no gradient of two sets of weights can come out."""
    made = Case()
    rollout = made.rollout(PLENTY)
    drawn = draw(rollout)
    with torch.no_grad():
        for parameter in made.generator.parameters():
            parameter.add_(0.01)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradient(rollout, drawn)


@pytest.mark.parametrize("case", ["drpo", "pixels"])
def test_candidates_that_are_left_out_take_their_graphs_with_them(case: str) -> None:
    """And those after them, whose micro-batches begin elsewhere now; the ones before are used."""
    made = find_case(case)
    order = GroupOrder(ORDER.total[[0, 1, 2, 4, 5]], Selection((1,), (4,)))
    found = []
    for budget in (0, PLENTY):
        rollout = made.rollout(budget)
        drawn = rollout.sample_group(0, 0, PROMPT)
        rollout.decode_group(drawn)
        before = rollout.graphs.held_bytes
        drawn.leave_out({3: "not_finite"})
        assert rollout.graphs.held_bytes == before // 3
        _, share = rollout.group_gradient(drawn, order, on_policy=True)
        assert share is not None
        found.append(share)
    assert equal(*found)
    assert drawn.graphs_used == CHUNK


@pytest.mark.parametrize("case", ["drpo", "pixels"])
def test_a_budget_is_of_what_is_really_held(case: str) -> None:
    """Bytes of living tensors, to 10 %; a group that nobody has any more holds nothing."""
    made = find_case(case)
    rollout = made.rollout(PLENTY)
    made.generator.embed_prompt(PROMPT.prompt)
    draw(rollout)
    assert rollout.graphs.held_bytes == 0
    with PeakMemory() as memory:
        drawn = draw(rollout)
        with_graphs, held = memory.alive_bytes, rollout.graphs.held_bytes
        drawn.graphs.clear()
        assert with_graphs - memory.alive_bytes == pytest.approx(held, rel=0.1)


@pytest.mark.parametrize("where", ["drawing", "features", "gradient"])
def test_out_of_memory_gives_graphs_up_before_it_halves_a_chunk(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said once; the run goes on as a lean one, with the chunks that it had."""
    made = find_case("drpo")
    lean = made.rollout(0)
    expected = gradient(lean, draw(lean))
    told: list[str] = []
    graphs = GraphBudget(PLENTY, lambda: told.append("given up"))
    micro_batches = MicroBatches(CHUNK, lambda size: told.append("halved"), free_memory=graphs.give_up)
    rollout = Rollout(made.spec, made.generator, made.phi, micro_batches, graphs)

    def run_out(call: Any) -> Any:
        def fail_while_graphs_are_kept(*arguments: Any, **named: Any) -> Any:
            made = call(*arguments, **named)
            if graphs.held_bytes:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return made

        return fail_while_graphs_are_kept

    if where == "drawing":
        monkeypatch.setattr(type(made.generator), "__call__", run_out(type(made.generator).__call__))
    if where == "features":
        monkeypatch.setattr(rollout, "features", run_out(rollout.features))
    drawn = draw(rollout)
    if where == "gradient":
        monkeypatch.setattr(rollout, "sample_with_graph", run_out(rollout.sample_with_graph))
    assert equal(gradient(rollout, drawn), expected)
    assert told == ["given up"]
    assert (graphs.limit_bytes, micro_batches.size) == (0, CHUNK)


def test_a_budget_is_the_jobs_or_follows_from_the_device() -> None:
    assert choose_budget(make_spec(memory="lean"), 80 * GIB) == 0
    assert choose_budget(make_spec(memory_budget_gib=0.5), 80 * GIB) == GIB // 2
    assert choose_budget(make_spec(), 80 * GIB) == 40 * GIB
    assert choose_budget(make_spec(), None) == CPU_BUDGET_BYTES
    with pytest.raises(ValueError, match="keeps no graphs"):
        make_spec(memory="lean", memory_budget_gib=1)


def train(spec: TrainSpec, workdir: Path) -> tuple[dict[str, Tensor], list[int]]:
    """Trained weights, and how many graphs each step used."""
    kept: list[int] = []
    rewards = {"bright": lambda prompt, images, metadata: [float(each.mean()) for each in images]}
    session.run_session(
        spec,
        job_id="job",
        workdir=workdir,
        models_dir=workdir,
        ranker=InProcessRanker(rewards, spec.rewards),
        on_event=lambda kind, data: kept.append(data["graphs_kept"]) if kind == "step" else None,
        control=lambda: "run",
    )
    newest = job_layout.newest_checkpoint(workdir)
    assert newest is not None
    return load_file(newest / job_layout.adapter_weights_file("unet")), kept


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_run_with_kept_graphs_is_a_lean_run(staleness: int, tmp_path: Path) -> None:
    """The same weights; each step says how many samples were not drawn again, also those of windows drawn ahead."""
    more: dict[str, Any] = {
        "max_staleness": staleness, "steps": 3, "prompts_per_step": 2, "optimizer": {"lr": 1e-3},
        "samples": {"prompts": 0},
    }  # fmt: skip
    lean, none = train(make_spec(memory="lean", **more), tmp_path / "lean")
    auto, every = train(make_spec(**more), tmp_path / "auto")
    assert none == [0, 0, 0]
    assert every == [2 * K] * 3
    assert all(torch.equal(value, auto[name]) for name, value in lean.items())
