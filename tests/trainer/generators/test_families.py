"""SANA-Sprint and the distilled models draw what diffusers' own pipelines draw in one step, and train."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from dipole.downloads.table import read_table
from dipole.errors import InvalidInput
from dipole_trainer import features, generators
from dipole_trainer.checkpoints import resume_state
from dipole_trainer.generators import tiny_pipelines
from dipole_trainer.generators.initial_weights import fingerprint_weights
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.spec import FeaturesSpec, GeneratorSpec
from dipole_trainer.weights import base_models
from dipole_trainer.weights.distillations import DISTILLED_MODELS, find_distillation

from ...one_step_families import PUBLISHED, distance, draw_published, load_published

PROMPT = "a red circle"


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families")
    for kind in PUBLISHED:
        tiny_pipelines.write_pipeline(folder / f"tiny-{kind}", kind)
    return folder


def build(families: Path, kind: str, **changes: Any) -> OneStepGenerator:
    spec = GeneratorSpec.model_validate({"model": f"tiny-{kind}", "lora": {"rank": 4}, "precision": "fp32", **changes})
    return generators.build_generator(spec, models_dir=families)


def disturb(generator: OneStepGenerator) -> None:
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=source) * 0.05)


def test_a_fused_lora_is_told_by_what_went_in(families: Path, tmp_path: Path) -> None:
    """Not by the sum, whose last bits are a machine's own; another file is another base."""
    found = resume_state.fingerprint_base(build(families, "hyper-sd15-lora"))
    mine = shutil.copytree(families / "tiny-hyper-sd15-lora", tmp_path / "tiny-hyper-sd15-lora")
    base, added = found.split("+")
    unet = UNet2DConditionModel.from_pretrained(mine / "unet")
    assert base == fingerprint_weights(unet.state_dict())
    lora = mine / "Hyper-SD15-1step-lora.safetensors"
    assert added == hashlib.sha256(lora.read_bytes()).hexdigest()
    save_file({name: value * 2 for name, value in load_file(lora).items()}, lora)
    assert resume_state.fingerprint_base(build(tmp_path, "hyper-sd15-lora")) != found


def test_every_distilled_model_is_compared() -> None:
    """A row of the table that no test holds against its model card could be wrong."""
    assert {"sana", *DISTILLED_MODELS} == PUBLISHED.keys()


@pytest.mark.parametrize("kind", PUBLISHED)
def test_one_step_is_what_the_model_card_says(families: Path, kind: str) -> None:
    """The same noise gives the same latents and images, and the call that the generator names gives them too."""
    generator, pipe = build(families, kind), load_published(kind, families / f"tiny-{kind}")
    noise = generator.draw_noise([1, 2])
    x = generator(noise, PROMPT).detach()
    assert distance(x, draw_published(pipe, kind, noise, PROMPT)) < 1e-5
    images = draw_published(pipe, kind, noise, PROMPT, "np")
    assert np.abs(generator.decode_images(x) / 255 - images).max() < 0.51 / 255
    called = pipe(
        PROMPT, latents=noise, num_images_per_prompt=2, output_type="latent", **generator.call_arguments()
    ).images
    assert distance(x, called) < 1e-5


@pytest.mark.parametrize("kind", PUBLISHED)
def test_a_lora_learns_and_its_base_stays(families: Path, kind: str) -> None:
    """Every parameter has a gradient; with the adapter off it is the distilled model, not the model before it."""
    generator = build(families, kind)
    noise = generator.draw_noise([1, 2])
    before = generator.draw_reference(noise, PROMPT)
    disturb(generator)
    x = generator(noise, PROMPT)
    gradients = torch.autograd.grad(x.square().mean(), generator.parameters())
    assert all(each.isfinite().all() and each.abs().max() > 0 for each in gradients)
    assert distance(x.detach(), before) > 1e-3
    assert torch.equal(generator.draw_reference(noise, PROMPT), before)


# ---- SANA-Sprint ----------------------------------------------------------------------------------------------------


def test_sana_draws_each_prompt_by_itself_in_any_size(families: Path) -> None:
    """Chunks agree, prompts may differ, and another resolution is the pipeline's too."""
    generator = build(families, "sana", resolution=96)
    noise = generator.draw_noise(range(3))
    assert noise.shape == (3, 8, 12, 12)
    with torch.no_grad():
        x = generator(noise, [PROMPT, "two blue squares", PROMPT])
        assert distance(generator(noise[1:2], "two blue squares"), x[1:2]) < 1e-5
        assert distance(generator(noise[1:2], PROMPT), x[1:2]) > 1e-3
    pipe = load_published("sana", families / "tiny-sana")
    called = pipe(PROMPT, latents=noise[:1], output_type="latent", **generator.call_arguments()).images
    assert distance(x[:1], called) < 1e-5


def test_sana_in_half_precision_and_whole(families: Path) -> None:
    """bf16 is near float32, with masters in float32; every weight of the transformer can be trained."""
    whole, half = build(families, "sana"), build(families, "sana", precision="bf16", tune="full")
    noise = whole.draw_noise([1, 2])
    assert distance(half(noise, PROMPT).detach(), whole(noise, PROMPT).detach()) < 3e-2
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}
    assert len(half.trained_state()) == len(whole.base_state())


def test_images_become_sanas_latents(families: Path) -> None:
    """For pairs: what the deep compression autoencoder makes of an image, in the transformer's units."""
    generator = build(families, "sana")
    latents = generator.encode_images([np.full((64, 64, 3), 200, np.uint8)])
    assert latents.shape == (1, 8, 8, 8)
    pixels = torch.full((1, 3, 64, 64), 200 / 127.5 - 1)
    with torch.no_grad():
        expected = generator.vae.encode(pixels).latent * generator.vae.config.scaling_factor
    assert distance(latents, expected) < 1e-5


def test_gemma_reads_so_much_of_a_prompt(families: Path) -> None:
    """The longest that is read whole, and one letter more: it changes nothing of the embedding, and is found."""
    generator = build(families, "sana")
    longest = "a" * 298
    assert generator.find_cut_prompts([longest, PROMPT]) is None
    read = generator.embed_prompt(longest)
    assert not torch.equal(read.states, generator.embed_prompt("a" * 297 + "b").states)
    found = generator.find_cut_prompts([longest + "b"])
    assert found is not None
    assert found.unread == "b"
    assert torch.equal(read.states, generator.embed_prompt(longest + "b").states)


@pytest.mark.parametrize("space", ["teacher_unet", "latent_mae", "tiny_contrastive", "tiny_labelled"])
def test_a_space_that_cannot_read_sana_says_why(families: Path, space: Any) -> None:
    with pytest.raises(
        InvalidInput, match=r"features\.type: \w+ .* this model .*: use vit_mae, .* or latents"
    ) as caught:
        features.build_features(FeaturesSpec(type=space), build(families, "sana"), models_dir=families)
    assert caught.value.field == "features.type"


def test_latents_of_any_number_of_channels_are_a_space(families: Path) -> None:
    generator = build(families, "sana")
    phi = features.build_features(FeaturesSpec(type="latents"), generator, models_dir=families)
    features.check_features_fit(phi, generator)


# ---- folders as others leave them -----------------------------------------------------------------------------------


def refusal(folder: Path) -> str:
    with pytest.raises(InvalidInput) as caught:
        generators.build_generator(GeneratorSpec(model=folder.name), models_dir=folder.parent)
    assert caught.value.field == "model"
    return str(caught.value)


@pytest.mark.parametrize("name", DISTILLED_MODELS)
def test_what_is_fetched_is_what_is_loaded(name: str) -> None:
    """One folder with both: the distilled weights, and the base without a U-Net that would be thrown away."""
    distillation, fetched = DISTILLED_MODELS[name], read_table().models[name]
    assert fetched.folder == name
    assert [part.source for part in fetched.parts] == [distillation.repository, distillation.base]
    assert fetched.parts[0].files == [distillation.file]
    has_unet = "unet/diffusion_pytorch_model.safetensors" in fetched.target_names()
    assert has_unet == (distillation.part == "lora")


def test_a_unets_own_weights_need_not_be_there(families: Path, tmp_path: Path) -> None:
    """Where a file takes their place: the configs are enough, and the fetched folder has no more."""
    mine = shutil.copytree(families / "tiny-sdxl-lightning", tmp_path / "mine")
    (mine / "unet/diffusion_pytorch_model.safetensors").unlink()
    assert base_models.locate_pipeline("mine", tmp_path) == str(mine)
    generator = generators.build_generator(GeneratorSpec(model="mine"), models_dir=tmp_path)
    noise = generator.draw_noise([1])
    assert distance(
        generator.draw_reference(noise, PROMPT), build(families, "sdxl-lightning").draw_reference(noise, PROMPT)
    ) < 1e-5  # fmt: skip


def test_a_folder_that_was_fetched_half_is_no_base(families: Path, tmp_path: Path) -> None:
    """By its name it should hold the one-step weights: without them it would draw noise."""
    mine = shutil.copytree(families / "tiny-hyper-sdxl-lora", tmp_path / "hyper-sdxl-lora")
    (mine / "Hyper-SDXL-1step-lora.safetensors").unlink()
    assert "Hyper-SDXL-1step-lora.safetensors is missing" in refusal(mine)
    assert "dipole models fetch hyper-sdxl-lora" in refusal(mine)


def test_weights_that_do_not_fit_the_pipeline_are_told(families: Path, tmp_path: Path) -> None:
    """Two files, another network's LoRA, another network, half a file."""
    mine = shutil.copytree(families / "tiny-hyper-sdxl-lora", tmp_path / "mine")
    lora, unet = mine / "Hyper-SDXL-1step-lora.safetensors", mine / "sdxl_lightning_1step_unet_x0.safetensors"
    shutil.copy(families / "tiny-sdxl-lightning" / unet.name, unet)
    assert "leave one of them there" in refusal(mine)
    unet.unlink()
    shutil.copy(families / "tiny-hyper-sd15-lora/Hyper-SD15-1step-lora.safetensors", lora)
    assert "cannot be loaded" in refusal(mine)
    save_file({"text.lora_A.weight": torch.zeros(1, 1)}, lora)
    assert f"{mine}" in refusal(mine)
    lora.unlink()
    state = load_file(families / "tiny-sdxl-lightning" / unet.name)
    save_file({name: value for name, value in state.items() if name != "conv_in.bias"}, unet)
    assert "1 of its weights do not fit, such as conv_in.bias" in refusal(mine)
    unet.write_bytes(unet.read_bytes()[:-8])
    assert "bytes" in refusal(mine)


def test_sana_needs_its_own_scheduler(families: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(families / "tiny-sana", tmp_path / "mine")
    scheduler = families / "tiny-hyper-sd15-lora/scheduler/scheduler_config.json"
    shutil.copy(scheduler, mine / "scheduler/scheduler_config.json")
    text = (mine / "model_index.json").read_text()
    (mine / "model_index.json").write_text(text.replace("SCMScheduler", "EulerDiscreteScheduler"))
    assert "give it SCMScheduler" in refusal(mine)


def test_the_side_of_a_model_is_known_before_it_is_loaded(families: Path) -> None:
    assert base_models.image_side("tiny-sana", families) == 64
    assert base_models.image_side("tiny-hyper-sdxl-lora", families) == 64
    sides = {name: base_models.image_side(name, Path("none")) for name in ("sana-sprint-1.6b", *DISTILLED_MODELS)}
    assert [name for name, side in sides.items() if side != 1024] == ["hyper-sd15-lora"]
    assert find_distillation(families / "tiny-sana") is None
