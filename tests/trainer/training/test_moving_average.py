"""The moving average of the weights: what it is, that training does not see it, and that a resume repeats it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from dipole.tiny.world import all_prompts
from dipole_trainer.generators.one_step import TINY_TURBO
from dipole_trainer.ranking.in_process import InProcessRanker
from dipole_trainer.spec import TrainSpec
from dipole_trainer.storage import job_layout
from dipole_trainer.training import session

LINES = [{"prompt": prompt.text, "metadata": prompt.metadata} for prompt in all_prompts(held_out=False)[:4]]
EMA = {"lr": 1e-3, "ema": {"decay": 0.15}}
BASE: dict[str, Any] = {
    "model": "tiny-turbo", "prompts": LINES, "rewards": [{"name": "bright"}], "steps": 4, "candidates": 4,
    "prompts_per_step": 1, "chunk_size": 4, "checkpoint_every": 1, "keep_checkpoints": 9, "optimizer": {"lr": 1e-3},
    "samples": {"prompts": 0}, "lora": {"rank": 4}, "method": {"drpo": {"positives": 2, "negatives": 2}},
}  # fmt: skip
Weights = dict[str, torch.Tensor]


def brightness(prompt: str, images: np.ndarray, metadata: Any) -> list[float]:
    return [float(value) for value in images.astype(np.float64).mean((1, 2, 3))]


def train(workdir: Path, *, stop_at: int | None = None, **more: Any) -> list[tuple[str, dict[str, Any]]]:
    spec = TrainSpec.model_validate({**BASE, **more})
    events: list[tuple[str, dict[str, Any]]] = []

    def control() -> Any:
        return "pause" if any(kind == "step" and data["step"] == stop_at for kind, data in events) else "run"

    session.run_session(
        spec, job_id="job", workdir=workdir, models_dir=workdir, control=control,
        ranker=InProcessRanker({"bright": brightness}, spec.rewards),
        on_event=lambda kind, data: events.append((kind, data)),
    )  # fmt: skip
    return events


def weights(workdir: Path, step: int, *, average: bool = False) -> Weights:
    folder = workdir / job_layout.checkpoint_name(step) / (job_layout.EMA_FOLDER if average else "")
    (file,) = [path for path in folder.glob("*/*.safetensors") if path.parent.name != job_layout.EMA_FOLDER]
    return load_file(file)


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_it_is_the_average_and_training_does_not_see_it(tmp_path: Path) -> None:
    """The first update is taken whole, update n keeps (1 + n) / (10 + n) of the average, and `decay` at most."""
    train(tmp_path / "with", optimizer=EMA)
    train(tmp_path / "without")
    assert same(weights(tmp_path / "with", 4), weights(tmp_path / "without", 4))
    expected = weights(tmp_path / "with", 1)
    assert same(weights(tmp_path / "with", 1, average=True), expected)
    for step, decay in ((2, 0.15), (3, 0.15), (4, 0.15)):
        now = weights(tmp_path / "with", step)
        expected = {name: decay * expected[name] + (1 - decay) * now[name] for name in now}
        found = weights(tmp_path / "with", step, average=True)
        assert all(torch.allclose(found[name], expected[name], atol=1e-7) for name in now)
    assert not same(weights(tmp_path / "with", 4, average=True), weights(tmp_path / "with", 4))


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_a_resumed_run_has_it_to_the_last_bit(tmp_path: Path, tune: str) -> None:
    """Of an adapter and of every weight, and where evaluations put it in place meanwhile."""
    held_out = {"every": 1, "prompts": LINES[:1], "images_per_prompt": 2}
    more = {"tune": tune, "evaluation": held_out, "optimizer": {"lr": 1e-3, "ema": {"evaluated": True}}}
    events = train(tmp_path / "whole", **more)
    assert {data["weights"] for kind, data in events if kind == "evaluation"} == {"ema"}
    train(tmp_path / "cut", stop_at=2, **more)
    train(tmp_path / "cut", **more)
    for average in (False, True):
        assert same(weights(tmp_path / "cut", 4, average=average), weights(tmp_path / "whole", 4, average=average))
    cut, whole = (
        json.loads((tmp_path / each / job_layout.evaluation_file(4)).read_text())["scores"] for each in ("cut", "whole")
    )
    assert cut == whole


def test_it_is_exported_beside_the_trained_weights(tmp_path: Path) -> None:
    """As diffusers loads it; the card says what it is. With `tune: full` it is a pipeline."""
    train(tmp_path, optimizer=EMA)
    export = tmp_path / job_layout.EXPORT_FOLDER
    assert "| moving average | decay 0.15, in `ema/` |" in (export / job_layout.MODEL_CARD_FILE).read_text()
    names = {path.relative_to(export).as_posix() for path in export.rglob("*.safetensors")}
    files = ("pytorch_lora_weights.safetensors", "tiny-turbo-drpo_webui.safetensors")
    assert names == {f"{folder}{name}" for folder in ("", "ema/") for name in files}
    pipe: Any = StableDiffusionPipeline.from_pretrained(  # type: ignore[no-untyped-call]
        str(TINY_TURBO), dtype=torch.float32, safety_checker=None
    )
    pipe.load_lora_weights(str(export / "ema"), weight_name="pytorch_lora_weights.safetensors")
    loaded = {name: value for name, value in pipe.unet.state_dict().items() if "lora_A" in name}
    wanted = {name: value for name, value in weights(tmp_path, 4, average=True).items() if "lora_A" in name}
    assert len(loaded) == len(wanted)
    for name, value in wanted.items():
        assert torch.equal(loaded[name.replace("lora_A.weight", "lora_A.default_0.weight")], value)


def test_every_weight_s_average_is_exported_as_a_pipeline(tmp_path: Path) -> None:
    train(tmp_path, tune="full", steps=2, optimizer=EMA)
    merged = tmp_path / job_layout.EXPORT_FOLDER / "ema" / job_layout.MERGED_FOLDER
    exported = load_file(merged / "unet/diffusion_pytorch_model.safetensors")
    assert same(exported, weights(tmp_path, 2, average=True))
