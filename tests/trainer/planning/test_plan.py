"""What a plan says is what a real update does: operations, memory, and on which device its tensors lie."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dipole.cli.jobs import read_job_file
from dipole.errors import InvalidInput
from dipole_trainer import features, generators
from dipole_trainer.compute.graph_budget import GraphBudget
from dipole_trainer.compute.micro_batches import MicroBatches
from dipole_trainer.compute.peak_memory import PeakMemory
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.generators.tiny_pipelines import write_pipeline
from dipole_trainer.planning import architectures
from dipole_trainer.planning.devices import DEVICES, USABLE_MEMORY, Device, find_device
from dipole_trainer.planning.fake_models import build_fake_models
from dipole_trainer.planning.job_plan import JobPlan, parse_job, plan_job
from dipole_trainer.planning.update_cost import FLOP_FORMULAS, measure_update
from dipole_trainer.ranking.selection import GroupOrder, Selection
from dipole_trainer.spec import PromptSpec, TrainSpec
from dipole_trainer.training.rollout import Rollout
from dipole_trainer.weights.base_models import PUBLISHED_MODELS

ROOT = Path(__file__).parents[3]
PROMPT = PromptSpec(prompt="a red square")


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind in ("sd", "sdxl", "sana"):
        write_pipeline(folder / f"tiny-{kind}", kind)
    return folder


def job(**more: Any) -> TrainSpec:
    return parse_job({"model": "tiny-turbo", "candidates": 16, "chunk_size": 4, "prompts_per_step": 1, **more})


def run_real_update(spec: TrainSpec, generator: OneStepGenerator, phi: Any, graphs: GraphBudget) -> tuple[int, int]:
    """Operations and peak bytes of one update of real networks, weights not counted in the peak."""
    rollout = Rollout(spec, generator, phi, MicroBatches(spec.chunk_size), graphs)
    generator.embed_prompt(PROMPT.prompt)
    half = spec.candidates // 2
    order = GroupOrder(
        np.linspace(1, 0, spec.candidates),
        Selection(tuple(range(half)), tuple(reversed(range(half, spec.candidates)))),
    )
    with PeakMemory() as memory, FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as flops:
        drawn = rollout.sample_group(0, 0, PROMPT)
        rollout.decode_group(drawn)
        rollout.prepare_features(drawn)
        _, share = rollout.group_gradient(drawn, order, on_policy=True)
    assert share is not None
    return flops.get_total_flops(), memory.peak_bytes


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"method": {"type": "dpo"}},
        {"method": {"type": "grpo"}},
        {"tune": "full"},
        {"model": "tiny-sd", "features": {"type": "latents"}},
        {"model": "tiny-sdxl", "features": {"type": "teacher_unet", "keys": ["mid_block"]}, "chunk_size": 2},
        {"model": "tiny-sana", "features": {"type": "latents"}},
    ],
    ids=lambda more: "-".join(map(str, more.values())) or "drpo",
)
def test_a_plan_counts_what_a_real_update_does(more: dict[str, Any], models_dir: Path) -> None:
    """Operations to 1 %, and the peak of memory to 15 %: without kept graphs, and with those of all samples."""
    spec = job(**more)
    planned = measure_update(spec, build_fake_models(spec, models_dir))
    generator = generators.build_generator(spec, models_dir=models_dir)
    phi = features.build_features(spec.features, generator, models_dir=models_dir)
    operations, peak = run_real_update(spec, generator, phi, GraphBudget(0))
    assert planned.operations == pytest.approx(operations, rel=0.01)
    assert planned.peak_bytes() + planned.group_bytes == pytest.approx(peak, rel=0.15)
    operations, peak = run_real_update(spec, generator, phi, GraphBudget(2**50))
    kept = spec.candidates
    spared = (kept - 1) * planned.graph.operations  # one more sample tells the budget what a graph takes
    assert planned.operations - spared == pytest.approx(operations, rel=0.01)
    assert planned.peak_bytes(kept) + planned.group_bytes == pytest.approx(peak, rel=0.15)


def test_weights_are_those_that_a_job_loads(models_dir: Path) -> None:
    """Text encoders, U-Net, autoencoder, adapter and φ, in their dtypes."""
    spec = job(model="tiny-sdxl", features={"type": "latents"}, precision="bf16")
    generator = generators.build_generator(spec, models_dir=models_dir)
    tensors = {
        id(each): each.nbytes
        for part in generator.pipeline.components.values()
        if isinstance(part, torch.nn.Module)
        for each in [*part.parameters(), *part.buffers()]
    }
    assert build_fake_models(spec, models_dir).weights_bytes == sum(tensors.values())


# of the denoiser, in millions: Stable Diffusion's as its papers have them, SANA-Sprint's by its name and config
@pytest.mark.parametrize(
    ("name", "millions"),
    [("sd-turbo", 866), ("hyper-sd15-lora", 860), ("dmd2-sdxl", 2567), ("sana-sprint-0.6b", 594),
     ("sana-sprint-1.6b", 1610)],
)  # fmt: skip
def test_published_networks_have_their_published_size(name: str, millions: int) -> None:
    """By the configs of their model cards."""
    with torch.device("meta"):
        pipeline = architectures.make_pipeline(architectures.PUBLISHED_PIPELINES[name])
    denoiser = getattr(pipeline, "transformer", None) or pipeline.unet
    assert round(sum(each.numel() for each in denoiser.parameters()) / 1e6) == millions


def test_a_distilled_model_is_planned_by_the_configs_in_its_folder(models_dir: Path, tmp_path: Path) -> None:
    """The base's, without the U-Net's weights; it weighs what the base does."""
    mine = write_pipeline(tmp_path / "mine", "sdxl-lightning")
    (mine / "unet/diffusion_pytorch_model.safetensors").unlink()
    planned = build_fake_models(job(model="mine", features={"type": "latents"}), tmp_path)
    base = build_fake_models(job(model="tiny-sdxl", features={"type": "latents"}), models_dir)
    assert not planned.is_published_shape
    assert (planned.weights_bytes, planned.trained_bytes) == (base.weights_bytes, base.trained_bytes)


def test_every_published_model_has_a_shape() -> None:
    """So that it can be planned before anything is fetched."""
    assert architectures.PUBLISHED_PIPELINES.keys() == PUBLISHED_MODELS.keys()


@pytest.mark.parametrize("name", ["sd-turbo", "sdxl-turbo", "sdxl-turbo-teacher"])
def test_an_update_at_full_size_leaves_no_tensor_on_the_cpu_and_waits_for_none(name: str) -> None:
    """The loop's own code, draw to gradient, on tensors of another device, that refuse to meet the CPU's, and to be
    read, or copied while the host waits.
    """
    program = [sys.executable, Path(__file__).with_name("fake_accelerator.py"), ROOT / f"examples/{name}.json"]
    ended = subprocess.run(program, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert all(count > 0 for count in json.loads(ended.stdout.splitlines()[-1]).values())


def plan(device: Device, **more: Any) -> JobPlan:
    (found,) = plan_job(job(**more), models_dir=Path("none"), devices=[device])
    return found


def test_a_chunk_that_is_said_to_fit_does() -> None:
    """On a device with little room: the largest chunk fits, and one more does not."""
    whole = plan(Device("small", 2**40, 1e12, 1e12), chunk_size=16)
    small = Device("small", int((whole.memory.total - whole.memory.peak_phase / 2) / USABLE_MEMORY), 1e12, 1e12)
    told = plan(small, chunk_size=16)
    assert not told.fits
    assert 0 < told.largest_chunk < 16
    assert plan(small, chunk_size=told.largest_chunk).fits
    assert not plan(small, chunk_size=told.largest_chunk + 2).fits


def test_a_plan_keeps_the_graphs_that_there_is_room_for() -> None:
    """All, or whole chunks within the budget; none where memory would run out over them."""
    auto = plan(DEVICES["h100"])
    assert auto.graphs.kept == 16
    assert sum(phase["teraflop"] for phase in auto.phases.values()) == pytest.approx(
        auto.teraflop_per_update + auto.graphs.saved_teraflop
    )
    each, lean = auto.graphs.bytes_each, auto.memory.total
    roomy, tight = (Device("small", math.ceil((lean + more) / USABLE_MEMORY), 1e12, 1e12) for more in (8 * each, 0))
    spec = job(memory_budget_gib=9.9 * each / 2**30)
    plans = plan_job(spec, models_dir=Path("none"), devices=[DEVICES["h100"], roomy, tight])
    assert [found.graphs.kept for found in plans] == [8, 8, 0]
    assert all(found.fits for found in plans)
    assert plans[2].graphs.total == plans[2].memory.total


def test_costs_add_up_over_prompts_and_steps() -> None:
    one, many = plan(DEVICES["h100"]), plan(DEVICES["h100"], prompts_per_step=3, steps=10)
    assert many.teraflop_per_update == pytest.approx(3 * one.teraflop_per_update)
    assert many.hours[0] == pytest.approx(10 * many.seconds_per_update[0] / 3600)
    assert many.images_per_update == 48
    assert many.ranking_requests_per_update == 3


def test_openai_s_batch_size_is_the_prompts_of_a_step() -> None:
    """`auto` keeps the default, as where a job is created."""
    assert parse_job({"hyperparameters": {"batch_size": 3}}).prompts_per_step == 3
    assert (
        parse_job({"hyperparameters": {"batch_size": "auto"}}).prompts_per_step
        == TrainSpec.model_fields["prompts_per_step"].default
    )


def test_what_cannot_be_planned_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="unknown model"):
        plan(DEVICES["h100"], model="no-such-model")
    with pytest.raises(InvalidInput, match="known are here"):
        find_device("abacus")
    with pytest.raises(InvalidInput, match="candidates"):
        parse_job({"candidates": "many"})
    path = tmp_path / "job.json"
    path.write_text("[1]")
    with pytest.raises(InvalidInput, match="must hold a JSON object"):
        read_job_file(path)


def test_each_device_is_planned_in_the_precision_that_a_job_would_take_there() -> None:
    """A job that names none: bf16 where the card has it; one that does is planned as it says."""
    cards = [DEVICES["t4"], DEVICES["a100"]]
    spec = job()
    assert spec.precision is None
    old, new = plan_job(spec, models_dir=Path("none"), devices=cards)
    assert (old.precision, new.precision) == ("fp32", "bf16")
    (named,) = plan_job(job(precision="bf16"), models_dir=Path("none"), devices=cards[1:])
    assert new == named
    old, new = plan_job(job(precision="fp16"), models_dir=Path("none"), devices=cards)
    assert (old.precision, new.precision) == ("fp16", "fp16")
