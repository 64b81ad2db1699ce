"""Generators on tiny pipelines of the real classes: one step is the pipeline's own, and the base stays the base."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from dipole.errors import InvalidInput
from dipole.tiny.render import SceneBatch, render_scenes
from dipole_trainer import generators
from dipole_trainer.generators import compilation, tiny_pipelines
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.generators.sdxl import SdxlGenerator
from dipole_trainer.spec import TrainSpec

PROMPT, KINDS = "a red circle", ("sd", "sdxl")
FIRST = [-0.04812828, 0.07333727, -0.09975463]  # of tiny-turbo's adapter of rank 16, seed 0
CLASSES: dict[str, type[OneStepGenerator]] = {"sd": OneStepGenerator, "sdxl": SdxlGenerator}


@pytest.fixture
def build(models: Path) -> Callable[..., OneStepGenerator]:
    return lambda model, **changes: generators.build_generator(make_spec(model=model, **changes), models_dir=models)


def make_spec(**changes: Any) -> TrainSpec:
    base: dict[str, Any] = {"prompts": [{"prompt": PROMPT}], "rewards": [{"name": "any"}], "lora": {"rank": 4}}
    return TrainSpec.model_validate({**base, **changes})


def disturb(generator: OneStepGenerator, seed: int = 0) -> None:
    """Train it, as far as these tests care: a fresh adapter changes nothing."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=source) * 0.05)


def theirs(pipe: Any, latents: torch.Tensor, output_type: str = "latent", **options: Any) -> Any:
    """What diffusers' own pipeline makes of the same noise in one step without guidance."""
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        PROMPT, num_inference_steps=1, guidance_scale=0.0, latents=latents, num_images_per_prompt=len(latents),
        output_type=output_type, **options,
    ).images  # fmt: skip


def close(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-5) -> bool:
    """Equal to `tolerance` of the largest value: random networks put out latents of any size."""
    return bool((one - other).abs().max() <= tolerance * other.abs().max())


# ---- one step -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", [None, "DDIMScheduler", "LCMScheduler", "DPMSolverMultistepScheduler"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_step_is_the_pipelines_own(models: Path, kind: str, scheduler: str | None) -> None:
    """G(noise, prompt) and its images are the pipeline's, with its own scheduler and with others."""
    loaded = [CLASSES[kind].pipeline_class.from_pretrained(str(models / f"tiny-{kind}")) for _ in range(2)]
    for pipe in loaded:
        if scheduler is not None:
            pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    generator = CLASSES[kind](loaded[0], make_spec())
    noise = generator.draw_noise([1, 2, 3])
    x = generator(noise, PROMPT).detach()
    assert noise.shape == (3, 4, 8, 8)
    assert close(x, theirs(loaded[1], noise))
    images = theirs(loaded[1], noise, "np")
    assert np.abs(generator.decode_images(x) / 255 - images).max() < 0.51 / 255


@pytest.mark.parametrize("kind", KINDS)
def test_another_resolution_is_the_pipelines_too(build: Callable[..., Any], models: Path, kind: str) -> None:
    """Noise of that size, and SDXL is told the size."""
    generator = build(f"tiny-{kind}", resolution=128)
    noise = generator.draw_noise([1])
    assert noise.shape == (1, 4, 16, 16)
    pipe = CLASSES[kind].pipeline_class.from_pretrained(str(models / f"tiny-{kind}"))
    assert close(generator(noise, PROMPT), theirs(pipe, noise, height=128, width=128))


def test_a_model_that_is_told_its_guidance_is_told_none() -> None:
    """A U-Net with `time_cond_proj_dim` gets the embedding that the pipeline gives it."""
    pipes = [tiny_pipelines.make_sd_pipeline() for _ in range(2)]
    unet = UNet2DConditionModel.from_config(pipes[0].unet.config, time_cond_proj_dim=16)
    for pipe in pipes:
        pipe.register_modules(unet=UNet2DConditionModel.from_config(unet.config))
        pipe.unet.load_state_dict(unet.state_dict())
        pipe.text_encoder.load_state_dict(pipes[0].text_encoder.state_dict())
    generator = OneStepGenerator(pipes[0], make_spec())
    noise = generator.draw_noise([1, 2])
    assert close(generator(noise, PROMPT), theirs(pipes[1], noise))


def test_chunks_and_prompts_of_ones_own_agree(build: Callable[..., Any]) -> None:
    """A row depends on its own noise and prompt alone."""
    for kind in KINDS:
        generator = build(f"tiny-{kind}")
        disturb(generator)
        noise = generator.draw_noise(range(5))
        prompts = [PROMPT, "two blue squares", PROMPT, "a star", "a red square"]
        with torch.no_grad():
            x = generator(noise, prompts)
            assert close(generator(noise[1:2], prompts[1]), x[1:2])
            assert close(generator(noise[2:5], prompts[2:5]), x[2:5])
            assert not close(generator(noise[1:2], PROMPT), x[1:2], 1e-3)


def test_a_prompt_is_encoded_once(build: Callable[..., Any]) -> None:
    """The very same embedding comes back, and calls do not run the text encoders again."""
    generator = build("tiny-sdxl")
    runs: list[Any] = []
    generator.pipeline.text_encoder_2.register_forward_hook(lambda *_: runs.append(1))
    first = generator.embed_prompt(PROMPT)
    generator(generator.draw_noise([1, 2]), PROMPT)
    assert generator.embed_prompt(PROMPT) is first
    assert len(runs) == 1
    assert not first.states.requires_grad


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("tune", ["lora", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_near_full(build: Callable[..., Any], kind: str, tune: str, precision: str) -> None:
    """Master weights stay in float32, samples are near the float32 ones, gradients finite; a VAE may be upcast."""
    whole, half = (build(f"tiny-{kind}", tune=tune, precision=each) for each in ("fp32", precision))
    noise = whole.draw_noise([1, 2])
    x = half(noise, PROMPT)
    assert x.dtype == torch.float32
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}
    assert close(x, whole(noise, PROMPT).detach(), 2e-2)
    assert close(half.draw_reference(noise, PROMPT), x.detach(), 2e-2)
    gradients = torch.autograd.grad(x.square().mean(), half.parameters())
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert (half.vae.dtype == torch.float32) == (precision == "fp16")
    assert half.decode_images(x.detach()).shape == (2, 64, 64, 3)


# ---- what is trained ------------------------------------------------------------------------------------------------


def test_tiny_turbos_adapter_is_drawn_as_ever() -> None:
    """The job's seed fixes the first weights: the figures in the README rest on these numbers."""
    generator = generators.build_generator(make_spec(lora={}), models_dir=Path("nowhere"))
    assert generator.kind == "tiny"
    assert generator.parameters()[0].flatten()[:3].tolist() == pytest.approx(FIRST, rel=1e-6)
    assert len(generator.parameters()) == 112


@pytest.mark.parametrize("tune", ["lora", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_moves_x_and_not_the_reference(build: Callable[..., Any], kind: str, tune: str) -> None:
    """x_ref is the base's, bit for bit, whatever was trained; inside `base` the generator is the base, nested too."""
    generator = build(f"tiny-{kind}", tune=tune)
    noise = generator.draw_noise([1, 2])
    before = generator(noise, PROMPT).detach()
    assert torch.equal(generator.draw_reference(noise, PROMPT), before)
    disturb(generator)
    assert torch.equal(generator.draw_reference(noise, PROMPT), before)
    with generator.base_weights():
        generator.draw_reference(noise, PROMPT)
        assert torch.equal(generator(noise, PROMPT), before)
    after = generator(noise, PROMPT)
    assert not close(after.detach(), before, 1e-2)
    assert all(gradient.abs().max() > 0 for gradient in torch.autograd.grad(after.sum(), generator.parameters()))


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_state_goes_into_a_fresh_generator(build: Callable[..., Any], tune: str) -> None:
    """`load_state(state())` makes another generator the same; names are PEFT's for an adapter, else the U-Net's."""
    one, other = build("tiny-sd", tune=tune), build("tiny-sd", tune=tune, seed=1)
    disturb(one)
    other.load_state(one.trained_state())
    noise = one.draw_noise([1])
    assert torch.equal(one(noise, PROMPT), other(noise, PROMPT))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    expected = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    assert (
        f"{expected}.lora_A.weight" in one.trained_state()
        if tune == "lora"
        else f"{expected}.weight" in one.trained_state()
    )


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_a_state_that_does_not_fit_changes_nothing(build: Callable[..., Any], tune: str) -> None:
    """A missing tensor, one too many, another shape: each is named, before any weight is touched."""
    generator = build("tiny-sd", tune=tune)
    good = generator.trained_state()
    name = list(good)[3]
    changed = {key: value + 1 for key, value in good.items()}
    for wrong in (
        {key: value for key, value in changed.items() if key != name},
        {**changed, name: changed[name][:1]},
    ):
        with pytest.raises(InvalidInput, match=name.replace(".", r"\.")) as caught:
            generator.load_state(wrong)
        assert caught.value.field == "model"
    with pytest.raises(InvalidInput, match="other"):
        generator.load_state({**changed, "other": torch.zeros(1)})
    assert all(torch.equal(generator.trained_state()[key], value) for key, value in good.items())


@pytest.mark.parametrize("target", ["to_z", "attn1"])
def test_target_modules_that_take_no_adapter_are_refused(build: Callable[..., Any], target: str) -> None:
    """Also where the others do: PEFT would pass over it."""
    with pytest.raises(InvalidInput, match=target) as caught:
        build("tiny-sd", lora={"target_modules": ["to_q", target]})
    assert caught.value.field == "lora.target_modules"


# ---- the frozen U-Net's insides -------------------------------------------------------------------------------------

BLOCKS = ("down_blocks.1", "mid_block", "up_blocks.0")


@pytest.mark.parametrize("tune", ["lora", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_hidden_is_what_the_bases_blocks_put_out(build: Callable[..., Any], models: Path, kind: str, tune: str) -> None:
    """Values and gradient equal those of hooks on a whole call of an untouched U-Net, whatever was trained."""
    generator = build(f"tiny-{kind}", tune=tune)
    disturb(generator)
    x_t = generator.draw_noise([1, 2]).requires_grad_()
    found = generator.extract_activations(x_t, 100, PROMPT, BLOCKS)
    assert list(found) == list(BLOCKS)

    pipe = CLASSES[kind].pipeline_class.from_pretrained(str(models / f"tiny-{kind}"))
    kept: dict[str, torch.Tensor] = {}
    for name in BLOCKS:
        pipe.unet.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: kept.update(
                {name: output[0] if isinstance(output, tuple) else output}
            )
        )
    pipe.unet(x_t, 100, **generator._conditioning([PROMPT], 2))
    for name in BLOCKS:
        assert close(found[name], kept[name])
        (ours,) = torch.autograd.grad(found[name].square().sum(), x_t, retain_graph=True)
        (expected,) = torch.autograd.grad(kept[name].square().sum(), x_t, retain_graph=True)
        assert close(ours, expected)
        assert ours.abs().max() > 0


def test_hidden_stops_after_the_last_block(build: Callable[..., Any]) -> None:
    """Nothing behind the mid block is run for it, and no hook is left behind."""
    generator = build("tiny-sd")
    runs: list[str] = []
    generator.denoiser.up_blocks[0].register_forward_hook(lambda *_: runs.append("up"))
    hooks = len(generator.denoiser.mid_block._forward_hooks)
    generator.extract_activations(generator.draw_noise([1]), 100, PROMPT, ["mid_block"])
    assert runs == []
    assert len(generator.denoiser.mid_block._forward_hooks) == hooks
    with pytest.raises(InvalidInput, match=r"no block 'up_blocks\.9'"):
        generator.extract_activations(generator.draw_noise([1]), 100, PROMPT, ["mid_block", "up_blocks.9"])


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_a_gradient_goes_through_hidden_into_the_generator(build: Callable[..., Any], tune: str) -> None:
    """The same network as generator and as frozen features: its gradient is that of two networks."""
    generator, features = build("tiny-sd", tune=tune), build("tiny-sd", tune=tune)
    disturb(generator)
    noise = generator.draw_noise([1, 2])

    def gradient(frozen: OneStepGenerator) -> tuple[torch.Tensor, ...]:
        x = generator(noise, PROMPT)
        loss = frozen.extract_activations(x, 100, PROMPT, ["mid_block"])["mid_block"].square().sum()
        return torch.autograd.grad(loss, generator.parameters())

    for one, other in zip(gradient(generator), gradient(features), strict=True):
        assert torch.equal(one, other)
        assert one.abs().max() > 0


# ---- images ---------------------------------------------------------------------------------------------------------


def test_pixels_are_the_decoded_image_with_a_gradient(build: Callable[..., Any]) -> None:
    """0 to 1 where `decode` has 0 to 255; not clamped, so that every pixel has a gradient."""
    generator = build("tiny-sdxl")
    x = generator(generator.draw_noise([1, 2]), PROMPT).detach().requires_grad_()
    pixels = generator.decode_pixels(x)
    assert pixels.shape == (2, 3, 64, 64)
    expected = generator.decode_images(x).transpose(0, 3, 1, 2) / 255
    assert np.abs(pixels.detach().clamp(0, 1).numpy() - expected).max() < 0.51 / 255
    (gradient,) = torch.autograd.grad(pixels.sum(), x)
    assert gradient.abs().min(0).values.max() > 0


def test_encode_is_roughly_the_inverse_of_decode() -> None:
    """On tiny-turbo's trained VAE and the pictures that it knows."""
    generator = generators.build_generator(make_spec(), models_dir=Path("nowhere"))
    images = pictures()
    x = generator.encode_images(images)
    assert x.shape == (2, 4, 8, 8)
    assert np.abs(generator.decode_images(x).astype(float) - images).mean() < 4
    assert (generator.encode_images(generator.decode_images(x)) - x).abs().mean() < 0.1 * x.abs().mean()
    assert torch.equal(x, generator.encode_images(images))


def pictures() -> np.ndarray:
    """Two pictures of the tiny world, uint8 (2, 64, 64, 3)."""
    grid = np.array([[16, 48, 16, 48]] * 2, np.float32)
    return render_scenes(
        SceneBatch(
            shape=np.array([[0, 1, 2, 3], [3, 2, 1, 0]]), colour=np.array([[0, 1, 2, 3], [3, 2, 1, 0]]),
            x=grid, y=np.array([[16, 16, 48, 48]] * 2, np.float32), radius=np.full((2, 4), 9, np.float32),
        )
    )  # fmt: skip


def test_images_of_any_size_are_cut_and_resized() -> None:
    """The central square counts, what lies beside it does not; it is scaled with a filter, up and down."""
    generator = generators.build_generator(make_spec(), models_dir=Path("nowhere"))
    image = pictures()[0]
    x = generator.encode_images([image])
    wide, high = np.full((64, 101, 3), 255, np.uint8), np.full((67, 64, 3), 255, np.uint8)
    wide[:, 18:82], high[1:65] = image, image
    large = image.repeat(3, 0).repeat(3, 1)
    found = generator.encode_images([wide, high, large])
    assert close(found[0], x[0])
    assert close(found[1], x[0])
    assert (found[2] - x[0]).abs().mean() < 0.1 * x.abs().mean()


def test_the_vaes_own_statistics_are_used_both_ways() -> None:
    """`latents_mean` and `latents_std` as SDXL's pipeline uses them, a shift where the VAE has one."""
    pipes = [tiny_pipelines.make_sdxl_pipeline() for _ in range(2)]
    for pipe in pipes:
        for name, module in pipe.components.items():
            if isinstance(module, torch.nn.Module):
                module.load_state_dict(getattr(pipes[0], name).state_dict())
        pipe.vae.register_to_config(latents_mean=[0.5, -0.5, 1.0, 0.0], latents_std=[0.5, 1.0, 2.0, 3.0])
    generator = SdxlGenerator(pipes[0], make_spec())
    noise = generator.draw_noise([1, 2])
    x = generator(noise, PROMPT).detach()
    assert np.abs(generator.decode_images(x) / 255 - theirs(pipes[1], noise, "np")).max() < 0.51 / 255
    image = np.random.default_rng(0).integers(0, 255, (1, 64, 64, 3), dtype=np.uint8)
    told = generator.encode_images(image)
    mean, std = (
        torch.tensor([0.5, -0.5, 1.0, 0.0]).view(1, 4, 1, 1),
        torch.tensor([0.5, 1.0, 2.0, 3.0]).view(1, 4, 1, 1),
    )
    generator.vae.register_to_config(latents_mean=None, latents_std=None)
    plain = generator.encode_images(image) / generator.vae.config.scaling_factor
    assert close(told, (plain - mean) / std * generator.vae.config.scaling_factor)
    generator.vae.register_to_config(shift_factor=0.25)
    assert close(generator.encode_images(image), (plain - 0.25) * generator.vae.config.scaling_factor)
    assert close(generator.decode_pixels(generator.encode_images(image)), generator.vae.decode(plain).sample / 2 + 0.5)


# ---- build ----------------------------------------------------------------------------------------------------------


def test_build_picks_the_class_by_the_pipelines_index(build: Callable[..., Any], tmp_path: Path) -> None:
    """`_class_name` decides; a pipeline of another class is refused by name."""
    assert [build(f"tiny-{kind}").kind for kind in KINDS] == ["sd", "sdxl"]
    (tmp_path / "flux").mkdir()
    (tmp_path / "flux/model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(InvalidInput, match="flux is a FluxPipeline") as caught:
        generators.build_generator(make_spec(model="flux"), models_dir=tmp_path)
    assert caught.value.field == "model"


@pytest.mark.parametrize("changes", [{}, {"tune": "full"}])
def test_a_generator_leaves_memory_with_its_job(build: Callable[..., Any], changes: dict[str, Any]) -> None:
    """Without the garbage collector: until that looks, a GPU would hold two jobs' models."""
    generator = build("tiny-sd", **changes)
    generator(generator.draw_noise([1]), PROMPT)
    gone = weakref.ref(generator)
    gc.disable()
    try:
        del generator
        assert gone() is None
    finally:
        gc.enable()


# ---- torch.compile --------------------------------------------------------------------------------------------------


def test_a_compiled_network_puts_out_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the adapter on and off, in chunks of any size, from one graph for each; and it has the same gradient.

    On a U-Net of one block, and with all of torch.compile but inductor's code, which takes minutes to make: that one is
    checked where a run starts.
    """
    monkeypatch.setattr(compilation, "COMPILE_OPTIONS", {"backend": "aot_eager", "fullgraph": True})
    one, other = (small_generator(compile=each) for each in (True, False))
    for generator in (one, other):
        disturb(generator)
    noise, prompts = one.draw_noise(range(3)), [PROMPT, "a star", PROMPT]
    torch._dynamo.utils.counters.clear()
    for count in (3, 2):
        assert close(one.draw_reference(noise[:count], PROMPT), other.draw_reference(noise[:count], PROMPT))
        ours, plain = (each(noise[:count], prompts[:count]) for each in (one, other))
        assert close(ours.detach(), plain.detach())
        gradients = [torch.autograd.grad(x.square().mean(), g.parameters()) for x, g in ((ours, one), (plain, other))]
        assert all(close(a, b, 1e-4) for a, b in zip(*gradients, strict=True))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # the other was made by the check at the start
    assert close(*(each.extract_activations(noise, 100, PROMPT, ["mid_block"])["mid_block"] for each in (one, other)))


def small_generator(**changes: Any) -> OneStepGenerator:
    pipe = tiny_pipelines.make_sd_pipeline()
    torch.manual_seed(0)
    pipe.register_modules(
        unet=UNet2DConditionModel(
            sample_size=8, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4, attention_head_dim=8,
            down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), cross_attention_dim=32,
        ),
        text_encoder=type(pipe.text_encoder)(pipe.text_encoder.config),
    )  # fmt: skip
    return OneStepGenerator(pipe, make_spec(**changes))


def test_a_compiled_network_with_another_gradient_is_refused() -> None:
    """Inductor has lost gradients without a word; NaN counts as another gradient."""
    weights = [torch.nn.Parameter(torch.tensor(2.0)), torch.nn.Parameter(torch.tensor(3.0))]
    one, other = weights
    compilation.check_compiled_gradient(lambda: one * other, lambda: one * other * 1.001, weights, torch.float32)
    for wrong in (lambda: one * other.detach() + 0 * other, lambda: one * other * torch.nan):
        with pytest.raises(InvalidInput, match="another gradient") as caught:
            compilation.check_compiled_gradient(wrong, lambda: one * other, weights, torch.float32)
        assert caught.value.field == "compile"
