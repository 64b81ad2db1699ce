"""Pipeline folders as others leave them: variants load, links load, and what cannot load is told in a sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dipole.errors import InvalidInput
from dipole_trainer import generators
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.spec import GeneratorSpec

UNET, VAE, TEXT = (
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)


@pytest.fixture
def folder(models: Path, tmp_path: Path) -> Path:
    """A copy of tiny-sd to be spoilt, as `mine` under `tmp_path`."""
    return shutil.copytree(models / "tiny-sd", tmp_path / "mine")


def build(folder: Path) -> OneStepGenerator:
    return generators.build_generator(GeneratorSpec(model=folder.name), models_dir=folder.parent)


def refusal(folder: Path) -> str:
    with pytest.raises(InvalidInput) as caught:
        build(folder)
    assert caught.value.field == "model"
    return str(caught.value)


def rename(folder: Path, name: str, variant: str) -> None:
    (folder / name).rename(folder / name.replace(".safetensors", f".{variant}.safetensors"))


def same_weights(one: OneStepGenerator, other: OneStepGenerator) -> bool:
    pairs = zip(one.base_state().values(), other.base_state().values(), strict=True)
    x, y = (each(each.draw_noise([1]), "a star").detach() for each in (one, other))
    # where numbers lie in memory moves the last bits
    return all(torch.equal(a, b) for a, b in pairs) and bool((x - y).abs().max() <= 1e-5 * y.abs().max())


@pytest.mark.parametrize("variants", [{UNET: "fp16", VAE: "fp16", TEXT: "fp16"}, {UNET: "bf16", TEXT: "ema"}])
def test_variants_load(models: Path, folder: Path, variants: dict[str, str]) -> None:
    """All parts, or each another; the weights are those of the plain files."""
    for name, variant in variants.items():
        rename(folder, name, variant)
    assert same_weights(build(folder), build(models / "tiny-sd"))


def test_plain_weights_come_before_a_variant_and_fp16_before_others(models: Path, folder: Path) -> None:
    state = {name: value + 1 for name, value in load_file(folder / UNET).items()}
    save_file(state, (folder / UNET).with_suffix(".non_ema.safetensors"), metadata={"format": "pt"})
    save_file(state, (folder / UNET).with_suffix(".ema.safetensors"), metadata={"format": "pt"})
    assert same_weights(build(folder), build(models / "tiny-sd"))
    rename(folder, UNET, "fp16")
    assert same_weights(build(folder), build(models / "tiny-sd"))


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_load_with_and_without_a_variant(models: Path, tmp_path: Path, variant: str | None) -> None:
    """And a shard that is missing is named."""
    pipe = OneStepGenerator.pipeline_class.from_pretrained(str(models / "tiny-sd"))
    pipe.save_pretrained(str(tmp_path / "mine"), variant=variant, max_shard_size="400KB")
    assert same_weights(build(tmp_path / "mine"), build(models / "tiny-sd"))
    shard = sorted((tmp_path / "mine/unet").glob("*-of-*"))[1]
    shard.unlink()
    assert f"{shard.name} is missing" in refusal(tmp_path / "mine")


def test_links_load_as_the_hub_lays_them(models: Path, tmp_path: Path) -> None:
    """Every file a link to a blob whose name says nothing, and the folder a link too."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots/a"
    blobs.mkdir()
    for number, path in enumerate(sorted(each for each in (models / "tiny-sd").rglob("*") if each.is_file())):
        shutil.copyfile(path, blobs / f"{number:040x}")
        target = snapshot / path.relative_to(models / "tiny-sd")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(blobs / f"{number:040x}")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/mine").symlink_to(snapshot)
    assert same_weights(build(tmp_path / "models/mine"), build(models / "tiny-sd"))


@pytest.mark.parametrize("name", ["my model (v2)", "モデル-赤", 'say "red"', "modèle à moi"])
def test_folders_are_called_as_people_call_them(models: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(models / "tiny-sd")
    assert build(tmp_path / name).kind == "sd"


def test_pickled_weights_alone_are_told_as_what_they_are(folder: Path) -> None:
    """Nothing is unpickled; the sentence says what was seen and what to do."""
    (folder / UNET).rename((folder / UNET).with_suffix(".bin"))
    told = refusal(folder)
    assert "unet/diffusion_pytorch_model.safetensors" in told
    assert "in unet there is config.json, diffusion_pytorch_model.bin" in told
    assert "save them as safetensors" in told


@pytest.mark.parametrize("name", [UNET, VAE, TEXT])
def test_weights_that_a_file_lacks_are_not_drawn_at_random(folder: Path, name: str) -> None:
    """transformers and diffusers would, with a line in a log."""
    state = load_file(folder / name)
    state.pop(lacking := sorted(state)[2])
    save_file(state, folder / name, metadata={"format": "pt"})
    assert f"lacks 1 of the network's weights, such as {lacking}" in refusal(folder)


ODD: dict[str, bytes] = {
    "not JSON": b"{", "a list": b"[1]", "a number": b"3", "nothing": b"", "not UTF-8": b"\xff\xfe{}",
    "deep": b"[" * 10**5,
}  # fmt: skip


@pytest.mark.parametrize("content", ODD.values(), ids=ODD)
@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json",
                                  "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"])  # fmt: skip
def test_odd_json_is_the_folders_fault(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    assert "mine" in refusal(folder)


Change = Callable[[dict[str, Any]], dict[str, Any]]
CHANGES: dict[str, tuple[str, Change]] = {
    "a class that is a list": ("model_index.json", lambda index: {**index, "_class_name": ["StableDiffusionPipeline"]}),
    "no class": ("model_index.json", lambda index: {name: index[name] for name in index if name != "_class_name"}),
    "a part of no class": ("model_index.json", lambda index: {**index, "unet": []}),
    "a part of numbers": ("model_index.json", lambda index: {**index, "unet": [1, 2]}),
    "a part of its own code": ("model_index.json", lambda index: {**index, "unet": ["os", "system"]}),
    "a part that is no network": ("model_index.json", lambda index: {**index, "vae": ["diffusers", "logging"]}),
    "a part with a path": ("model_index.json", lambda index: {**index, "../up": ["diffusers", "AutoencoderKL"]}),
    "no VAE": ("model_index.json", lambda index: {name: index[name] for name in index if name != "vae"}),
    "a U-Net of words": ("unet/config.json", lambda config: {**config, "block_out_channels": "wide"}),
    "a U-Net of another width": ("unet/config.json", lambda config: {**config, "block_out_channels": [16, 32]}),
    "a schedule unheard of": ("scheduler/scheduler_config.json", lambda config: {**config, "beta_schedule": "cubic"}),
    "a schedule of no steps": ("scheduler/scheduler_config.json", lambda config: {**config, "num_train_timesteps": 0}),
    "a VAE scaled by nothing": ("vae/config.json", lambda config: {**config, "scaling_factor": None}),
    "a VAE scaled by words": ("vae/config.json", lambda config: {**config, "scaling_factor": "0.18215"}),
    "means of another width": ("vae/config.json", lambda config: {**config, "latents_mean": [0], "latents_std": [1]}),
    "an encoder of words": ("text_encoder/config.json", lambda config: {**config, "hidden_size": "wide"}),
}  # fmt: skip


@pytest.mark.parametrize(("name", "change"), CHANGES.values(), ids=CHANGES)
def test_odd_values_are_the_folders_fault(folder: Path, name: str, change: Change) -> None:
    (folder / name).write_text(json.dumps(change(json.loads((folder / name).read_text()))))
    assert refusal(folder)


@pytest.mark.parametrize(
    ("absent", "said"),
    [
        ("scheduler", "names no scheduler, which StableDiffusionPipeline consists of"),
        ("_class_name", "names no _class_name"),
    ],
)
def test_what_an_index_lacks_is_named(folder: Path, absent: str, said: str) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({name: index[name] for name in index if name != absent}))
    assert said in refusal(folder)


def test_a_unet_that_does_not_say_its_size_asks_for_one(folder: Path) -> None:
    config = json.loads((folder / "unet/config.json").read_text())
    (folder / "unet/config.json").write_text(json.dumps({**config, "sample_size": None}))
    with pytest.raises(InvalidInput, match="does not say the size") as caught:
        build(folder)
    assert caught.value.field == "resolution"
    spec = GeneratorSpec(model="mine", resolution=64)
    assert generators.build_generator(spec, models_dir=folder.parent).side == 64
