"""What leaves a run loads into stock pipelines without a word and draws what the trained generator draws."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dipole_trainer import generators
from dipole_trainer.checkpoints import export, model_card
from dipole_trainer.checkpoints.usage_snippet import PipelineUsage
from dipole_trainer.generators import initial_weights, tiny_pipelines
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.spec import TrainSpec
from dipole_trainer.weights.distillations import DISTILLED_MODELS

PROMPT, KINDS = "a red circle", ("sd", "sdxl")
DIFFUSERS = "pytorch_lora_weights.safetensors"
NO_TEXT_ENCODER = "No LoRA keys associated to CLIPTextModel"  # diffusers says so of every LoRA of a U-Net alone


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What diffusers warns of in its log; Python's own warnings are errors anyhow."""
    diffusers_logging.enable_propagation()
    messages: list[str] = []
    with caplog.at_level(logging.WARNING):
        yield messages
        messages += [record.getMessage() for record in caplog.records]
    diffusers_logging.disable_propagation()
    assert [message for message in messages if not message.startswith(NO_TEXT_ENCODER)] == []


def make_spec(**changes: Any) -> TrainSpec:
    base: dict[str, Any] = {
        "prompts": [{"prompt": PROMPT}], "rewards": [{"name": "pretty"}, {"name": "sharp", "weight": 0}],
        "lora": {"rank": 4, "alpha": 4}, "steps": 7,
    }  # fmt: skip
    return TrainSpec.model_validate({**base, **changes})


def trained(spec: TrainSpec, models: Path, workdir: Path) -> tuple[OneStepGenerator, Path]:
    """A disturbed generator and its checkpoint, as the loop lays it out."""
    generator = generators.build_generator(spec, models_dir=models)
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=source) * 0.05)
    folder = workdir / "checkpoint-7"
    part = generator.component
    if generator.lora is None:
        (folder / part).mkdir(parents=True)
        save_file(generator.trained_state(), folder / part / "diffusion_pytorch_model.safetensors")
    else:
        (folder / f"{part}_lora").mkdir(parents=True)
        save_file(generator.trained_state(), folder / f"{part}_lora/adapter_model.safetensors")
        generator.lora.save_pretrained(str(folder / f"{part}_lora"))
    (folder / "training_state.json").write_text('{"step": 7}')
    return generator, folder


def fresh(generator: OneStepGenerator, folder: Path) -> Any:
    pipe = generator.pipeline_class.from_pretrained(str(folder), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, noise: Tensor) -> Tensor:
    images: Tensor = pipe(
        PROMPT, num_inference_steps=1, guidance_scale=0.0, latents=noise, num_images_per_prompt=len(noise),
        output_type="latent",
    ).images  # fmt: skip
    return images


def distance(one: Tensor, other: Tensor) -> float:
    """The largest difference, as a part of the largest value."""
    return float((one - other).abs().max() / other.abs().max())


def check(pipe: Any, generator: OneStepGenerator) -> None:
    """The pipeline draws what the trained generator does, and not what its base does."""
    noise = generator.draw_noise([1, 2])
    drawn = draw(pipe, noise)
    with torch.no_grad():
        assert distance(drawn, generator(noise, PROMPT)) < 1e-5
    assert distance(drawn, generator.draw_reference(noise, PROMPT)) > 1e-2


@pytest.mark.parametrize("alpha", [4, 8, 2.5])
@pytest.mark.parametrize("kind", KINDS)
def test_both_lora_files_are_the_trained_generator(
    models: Path, tmp_path: Path, said: list[str], kind: str, alpha: float
) -> None:
    """For diffusers and under kohya's names, whatever alpha is to the rank; the merged pipeline likewise."""
    spec = make_spec(model=f"tiny-{kind}", lora={"rank": 4, "alpha": alpha}, export_merged=True)
    generator, checkpoint = trained(spec, models, tmp_path)
    written = export.export_checkpoint(checkpoint, tmp_path, spec, generator)
    webui = f"tiny-{kind}-drpo_webui.safetensors"
    assert [path.name for path in written] == ["README.md", "merged", DIFFUSERS, webui]
    for name in (DIFFUSERS, webui):
        pipe = fresh(generator, models / f"tiny-{kind}")
        pipe.load_lora_weights(str(tmp_path / "export"), weight_name=name)
        assert pipe.get_active_adapters() != []
        check(pipe, generator)
    check(fresh(generator, tmp_path / "export/merged"), generator)


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_leaves_as_a_pipeline(models: Path, tmp_path: Path, said: list[str], kind: str) -> None:
    """With `tune: full` there is no adapter, and merged/ without being asked for."""
    spec = make_spec(model=f"tiny-{kind}", tune="full")
    generator, checkpoint = trained(spec, models, tmp_path)
    written = export.export_checkpoint(checkpoint, tmp_path, spec, generator)
    assert [path.name for path in written] == ["README.md", "merged"]
    check(fresh(generator, tmp_path / "export/merged"), generator)


def test_convolutions_and_other_layers_are_exported_too(models: Path, tmp_path: Path, said: list[str]) -> None:
    """Kernels of 3×3 and layers outside attention, in all three forms."""
    targets = ["conv1", "to_q", "time_emb_proj", "proj_in", "conv_shortcut"]
    spec = make_spec(model="tiny-sd", lora={"rank": 4, "alpha": 2, "target_modules": targets}, export_merged=True)
    generator, checkpoint = trained(spec, models, tmp_path)
    export.export_checkpoint(checkpoint, tmp_path, spec, generator)
    for name in (DIFFUSERS, "tiny-sd-drpo_webui.safetensors"):
        pipe = fresh(generator, models / "tiny-sd")
        pipe.load_lora_weights(str(tmp_path / "export"), weight_name=name)
        check(pipe, generator)
    check(fresh(generator, tmp_path / "export/merged"), generator)


def test_the_checkpoint_is_exported_and_not_what_was_trained_since(models: Path, tmp_path: Path) -> None:
    """The best checkpoint may not be the last; the generator keeps its own weights."""
    spec = make_spec(model="tiny-sd", export_merged=True)
    generator, checkpoint = trained(spec, models, tmp_path)
    noise = generator.draw_noise([1])
    then = generator(noise, PROMPT).detach()
    with torch.no_grad():
        generator.parameters()[0].add_(1.0)
    now = generator(noise, PROMPT).detach()
    export.export_checkpoint(checkpoint, tmp_path, spec, generator)
    assert distance(draw(fresh(generator, tmp_path / "export/merged"), noise), then) < 1e-5
    assert torch.equal(generator(noise, PROMPT), now)


def test_merged_weights_are_in_the_runs_precision(models: Path, tmp_path: Path) -> None:
    """Merged in float32 and rounded once, beside the base's parts in the precision that they ran in."""
    spec = make_spec(model="tiny-sd", export_merged=True, precision="bf16")
    generator, checkpoint = trained(spec, models, tmp_path)
    export.export_checkpoint(checkpoint, tmp_path, spec, generator)
    state = load_file(tmp_path / "export/merged/unet/diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in state.values()} == {torch.bfloat16}
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    adapter, base = generator.trained_state(), generator.denoiser.get_submodule(layer).base_layer.weight
    expected = base.float() + adapter[f"{layer}.lora_B.weight"] @ adapter[f"{layer}.lora_A.weight"]
    assert torch.equal(state[f"{layer}.weight"], expected.bfloat16())


def test_merging_a_convolution_is_adding_its_two_convolutions() -> None:
    """W + scale·B·A as one kernel is what A and then B do beside W."""
    torch.manual_seed(0)
    plain, down = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(3, 2, 3, padding=1, bias=False)
    up, x = nn.Conv2d(2, 8, 1, bias=False), torch.randn(2, 3, 5, 5)
    expected = plain(x) + 0.5 * up(down(x))
    adapter = {"c.lora_A.weight": down.weight, "c.lora_B.weight": up.weight}
    merged = initial_weights.merge_adapter({"c.weight": plain.weight, "other": torch.ones(1)}, adapter, 0.5)
    assert torch.allclose(nn.functional.conv2d(x, merged["c.weight"], padding=1), expected, atol=1e-6)
    assert set(merged) == {"c.weight", "other"}


@pytest.mark.parametrize("kind", KINDS)
def test_webui_names_are_kohyas(models: Path, tmp_path: Path, kind: str) -> None:
    """Three tensors a layer, alpha a float scalar, no text encoder, and metadata by which A1111 knows SDXL."""
    spec = make_spec(model=f"tiny-{kind}", lora={"rank": 4, "alpha": 6.5})
    generator, checkpoint = trained(spec, models, tmp_path)
    export.export_checkpoint(checkpoint, tmp_path, spec, generator)
    with safe_open(str(tmp_path / f"export/tiny-{kind}-drpo_webui.safetensors"), "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert metadata["ss_base_model_version"].startswith("sdxl_" if kind == "sdxl" else "sd_v1")
    layers = {name.partition(".")[0] for name in tensors}
    assert len(tensors) == 3 * len(layers)
    for layer in layers:
        assert re.fullmatch(r"lora_unet_(down_blocks|mid_block|up_blocks)_[a-z0-9_]+_to_(q|k|v|out_0)", layer)
        assert tensors[f"{layer}.lora_down.weight"].shape[0] == tensors[f"{layer}.lora_up.weight"].shape[1] == 4
        assert (tensors[f"{layer}.alpha"].item(), tensors[f"{layer}.alpha"].shape) == (6.5, ())


def test_configs_tell_nothing_of_this_machine(models: Path, tmp_path: Path) -> None:
    """Folders that parts were loaded from stay here."""
    spec = make_spec(model="tiny-sdxl", export_merged=True)
    generator, checkpoint = trained(spec, models, tmp_path)
    export.export_checkpoint(checkpoint, tmp_path, spec, generator)
    texts = [path.read_text() for path in (tmp_path / "export").rglob("*") if path.suffix in (".json", ".md")]
    assert len(texts) > 5
    assert not any(str(models) in text or str(tmp_path) in text for text in texts)


def test_an_export_is_whole_or_not_there(models: Path, tmp_path: Path) -> None:
    """One that stopped half-way leaves the earlier one, and the next leaves nothing of either."""
    spec = make_spec(model="tiny-sd")
    generator, checkpoint = trained(spec, models, tmp_path)
    export.export_checkpoint(checkpoint, tmp_path, spec, generator)
    (tmp_path / "export/old").write_text("")
    weights = checkpoint / "unet_lora/adapter_model.safetensors"
    weights.rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError):
        export.export_checkpoint(checkpoint, tmp_path, spec, generator)
    assert (tmp_path / "export/old").is_file()
    (tmp_path / "away").rename(weights)
    export.export_checkpoint(checkpoint, tmp_path, spec, generator)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-7", "export"]
    assert not (tmp_path / "export/old").exists()


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("tiny-turbo", {}),
        ("tiny-sd", {"resolution": 128, "precision": "bf16"}),
        ("tiny-sdxl", {}),
        ("tiny-sdxl", {"tune": "full"}),
    ],
)
def test_the_cards_snippet_runs_as_it_stands(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, changes: dict[str, Any]
) -> None:
    """Run in the export's folder, where DIPOLE_MODELS_DIR says where models are, it draws an image."""
    spec = make_spec(model=model, **changes)
    generator, checkpoint = trained(spec, models, tmp_path)
    export.export_checkpoint(checkpoint, tmp_path, spec, generator)
    (snippet,) = re.findall(r"```python\n(.*?)```", (tmp_path / "export/README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path / "export")
    monkeypatch.setenv("DIPOLE_MODELS_DIR", str(models))
    exec(compile(snippet, "README.md", "exec"), {})
    side = spec.resolution or 64
    with Image.open("image.png") as image:
        assert image.size == (side, side)


@pytest.mark.parametrize(
    ("kind", "tune"),
    [("sana", "lora"), ("sana", "full"), ("hyper-sdxl-lora", "lora"), ("sdxl-lightning", "lora"), ("dmd2-sdxl", "lora"),
     ("hyper-sd15-lora", "full")],
)  # fmt: skip
def test_the_snippet_of_every_family_draws_the_trained_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, tune: str
) -> None:
    """It sets up the base and its one-step weights, adds the export, and draws what the generator draws."""
    models, export_folder = tmp_path / "models", tmp_path / "export"
    tiny_pipelines.write_pipeline(models / f"mine-{kind}", kind)
    spec = make_spec(model=f"mine-{kind}", tune=tune, precision="fp32")
    generator, checkpoint = trained(spec, models, tmp_path)
    export.export_checkpoint(checkpoint, tmp_path, spec, generator)
    (snippet,) = re.findall(r"```python\n(.*?)```", (export_folder / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(export_folder)
    monkeypatch.setenv("DIPOLE_MODELS_DIR", str(models))
    names: dict[str, Any] = {}
    exec(compile(snippet, "README.md", "exec"), names)
    noise = torch.randn((1, *generator.draw_noise([0]).shape[1:]), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        (expected,) = generator.decode_images(generator(noise, "a prompt"))
    with Image.open("image.png") as image:
        assert np.abs(np.asarray(image).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("name", DISTILLED_MODELS)
def test_the_card_of_a_distilled_model_names_both_repositories(name: str) -> None:
    """What was fetched under a published name is read from the hub by others."""
    spec, distillation = make_spec(model=name), DISTILLED_MODELS[name]
    usage = PipelineUsage("AnyPipeline", {"num_inference_steps": 1, "guidance_scale": 0.0}, "set", distillation)
    card = model_card.render_model_card(spec, step=3, precision="fp16", usage=usage, files=[DIFFUSERS])
    assert f"\nbase_model: {distillation.base}\n" in card
    assert f"| one-step weights | {distillation.file} of {distillation.repository}; load it first" in card
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert f'"{distillation.repository}"' in snippet
    assert "DIPOLE_MODELS_DIR" not in snippet
    compile(snippet, "card", "exec")


def test_the_card_says_what_was_trained_and_shows_samples(models: Path, tmp_path: Path) -> None:
    """Base, method, rewards, steps of the checkpoint, and the pictures that were drawn for it."""
    spec = make_spec(model="tiny-sd", method={"type": "random"})
    generator, checkpoint = trained(spec, models, tmp_path)

    def draw_pictures(folder: Path) -> None:
        for name in ("samples.png", "curves.png"):
            Image.new("RGB", (2, 2), "blue").save(folder / name)

    written = export.export_checkpoint(checkpoint, tmp_path, spec, generator, draw_pictures)
    assert {"samples.png", "curves.png"} <= {path.name for path in written}
    card = (tmp_path / "export/README.md").read_text()
    for fact in (
        "](samples.png)", "- `curves.png`: rewards", "| base | tiny-sd |", "| method | random |",
        "pretty (trained, weight 1), sharp (held out)",
        "| updates | 7 of 8 prompts and 24 candidates each |", "rank 4, alpha 4", "`tiny-sd-random_webui.safetensors`",
    ):  # fmt: skip
        assert fact in card


def test_the_card_of_a_hub_model_names_its_repository() -> None:
    """So that the snippet loads it from there, at the revision that was trained on."""
    spec = make_spec(model="sdxl-turbo", revision="abc", precision="fp16", pairs_file="file-1", rewards=[])
    usage = PipelineUsage("StableDiffusionXLPipeline", {"num_inference_steps": 1, "guidance_scale": 0.0})
    card = model_card.render_model_card(spec, step=3, precision="fp16", usage=usage, files=[DIFFUSERS])
    assert "\nbase_model: stabilityai/sdxl-turbo\n" in card
    assert 'base = "stabilityai/sdxl-turbo"\n' in card
    assert 'StableDiffusionXLPipeline.from_pretrained(base, revision="abc", dtype=dtype)' in card
    assert "recorded preferences" in card
    assert "unverified" not in card
    compile(re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0], "card", "exec")
