"""Feature spaces: small models of the real classes, saved as their publishers save them and loaded by the real code."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from dipole.errors import InvalidInput
from dipole_trainer import features, generators
from dipole_trainer.features import latent_mae, latents, pooling, teacher_unet, tiny_contrastive, tiny_labelled, vit_mae
from dipole_trainer.features.preprocessing import ImagePreprocessor
from dipole_trainer.features.vision_models import VisionFeatures
from dipole_trainer.generators import tiny_pipelines
from dipole_trainer.generators.one_step import TINY_TURBO, OneStepGenerator
from dipole_trainer.spec import DrpoSpec, FeaturesSpec, PromptSpec, RewardSpec, TrainSpec
from dipole_trainer.weights.feature_weights import PIXEL_SPACES
from dipole_trainer.weights.feature_weights import TINY_CONTRASTIVE_FILE as ENCODER_FILE

PROMPT = "a red circle"
SEEDS = [5, 11, 2**40 + 3]
QUADRANTS = [(0, 0), (0, 1), (1, 0), (1, 1)]
MAE_WIDTHS, MAE_DEPTHS = (8, 12, 40, 20), (3, 1, 2, 1)
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


# ---- small models, where their commands would put the real ones -----------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models_dir with a small model under the name of each published one, and two pipelines."""
    folder = tmp_path_factory.mktemp("models")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        write_vision_models(folder)
    (folder / "drpo-mae-latent-256").mkdir()
    checkpoint = {"state_dict": mae_tensors(), "metadata": {"model_config": {"layers": list(MAE_DEPTHS)}}}
    torch.save(checkpoint, folder / "drpo-mae-latent-256/mae_latent_256_torch.pth")
    tiny_pipelines.write_pipeline(folder / "tiny-sd", "sd")
    tiny_pipelines.write_pipeline(folder / "tiny-sdxl", "sdxl")
    return folder


def write_vision_models(folder: Path) -> None:
    shape = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    mae = transformers.ViTMAEConfig(**shape, **decoder, decoder_intermediate_size=32, image_size=32, patch_size=8)
    save_model(transformers.ViTMAEForPreTraining(mae), folder / "vit-mae-base", ViTImageProcessorPil(size=32))

    dino = transformers.Dinov2Config(**shape, image_size=56, patch_size=14)
    crop = {"height": 28, "width": 28}
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=crop)
    save_model(transformers.Dinov2Model(dino), folder / "dinov2-base", processor)

    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    clip = transformers.CLIPConfig(text_config=text, vision_config={**shape, "image_size": 32, "patch_size": 8})
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    save_model(transformers.CLIPModel(clip), folder / "clip-vit-large-patch14", processor)


def save_model(model: Any, folder: Path, processor: Any) -> None:
    for parameter in model.parameters():  # away from their start, where biases are zero and norms do nothing
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(str(folder))
    processor.save_pretrained(str(folder))


def mae_tensors(*, flax: bool = True, seed: int = 4) -> dict[str, Tensor]:
    """Random weights of a latent MAE under the published names, kernels H×W×in×out, and a decoder beside them."""
    draw = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}

    def conv(name: str, before: int, width: int, side: int) -> None:
        kernel = torch.randn(width, before, side, side, generator=draw) * (2 / (before * side * side)) ** 0.5
        tensors[f"{name}.kernel" if flax else f"{name}.weight"] = kernel.permute(2, 3, 1, 0) if flax else kernel

    def norm(name: str, width: int) -> None:
        tensors[f"{name}.scale" if flax else f"{name}.weight"] = 1 + 0.1 * torch.randn(width, generator=draw)
        tensors[f"{name}.bias"] = 0.1 * torch.randn(width, generator=draw)

    before = MAE_WIDTHS[0]
    conv("encoder.conv1", 4, before, 3)
    norm("encoder.gn1", before)
    for i, (width, depth) in enumerate(zip(MAE_WIDTHS, MAE_DEPTHS, strict=True)):
        for j in range(depth):
            name = f"encoder.stages_{i}.layers_{j}"
            conv(f"{name}.conv1", before, width, 3)
            norm(f"{name}.gn1", width)
            conv(f"{name}.conv2", width, width, 3)
            norm(f"{name}.gn2", width)
            if i > 0 and j == 0:
                conv(f"{name}.proj_conv", before, width, 1)
                norm(f"{name}.proj_gn", width)
            before = width
        norm(f"encoder.layer{i + 1}_norm", before)
    conv("decoder.conv1", before, 4, 3)
    return tensors


def generator_of(model: str, models: Path) -> OneStepGenerator:
    spec = TrainSpec(model=model, prompts=(PromptSpec(prompt=PROMPT),), rewards=(RewardSpec(name="r"),))
    return generators.build_generator(spec, models_dir=models)


@pytest.fixture(scope="module")
def sd(models: Path) -> OneStepGenerator:
    return generator_of("tiny-sd", models)


@pytest.fixture(scope="module")
def sdxl(models: Path) -> OneStepGenerator:
    return generator_of("tiny-sdxl", models)


# ---- what every space promises --------------------------------------------------------------------------------------

SPACES = {  # settings, and (T, D) of each key for latents of 16×16, images of 128×128
    "latents": (FeaturesSpec(type="latents"), {"latents": (1, 1024)}),
    "tiny_contrastive": (FeaturesSpec(type="tiny_contrastive"), {"mean": (1, 96), "layout": (1, 96 * 16)}),
    "tiny_labelled": (
        FeaturesSpec(type="tiny_labelled", keys=("mean", "objects")),
        {"mean": (1, 64), "objects": (1, 24)},
    ),
    "latent_mae": (
        FeaturesSpec(type="latent_mae", keys=("layer4_mean", "layer4_std_2", "layer1_blk2_std_4", "conv1_mean")),
        {"layer4_mean": (1, 20), "layer4_std_2": (1, 20), "layer1_blk2_std_4": (16, 8), "conv1_mean": (1, 8)},
    ),
    "vit_mae": (
        FeaturesSpec(type="vit_mae"),
        {"layer3_patch_mean": (1, 16), "layer3_patch_std": (1, 16), "layer3_cls": (1, 16)},
    ),
    "dinov2": (
        FeaturesSpec(type="dinov2", keys=("layer1_cls", "layer2_patch_std")),
        {"layer1_cls": (1, 16), "layer2_patch_std": (1, 16)},
    ),
    "clip": (
        FeaturesSpec(type="clip"),
        {"layer3_patch_mean": (1, 16), "layer3_patch_std": (1, 16), "layer3_cls": (1, 16)},
    ),
    "teacher_unet": (
        FeaturesSpec(type="teacher_unet", keys=("mid_block", "up_blocks.0", "down_blocks.0")),
        {"mid_block": (1, 64 * 4), "up_blocks.0": (1, 64 * 16), "down_blocks.0": (1, 32 * 4)},
    ),
}


@pytest.mark.parametrize("space", SPACES)
def test_row_k_depends_on_its_own_latents_prompt_and_seed_alone(space: str, sd: OneStepGenerator, models: Path) -> None:
    """Asked twice it answers the same, bit for bit, and chunks of one agree with the whole to 1e-5 of the values."""
    spec, expected = SPACES[space]
    phi = features.build_features(spec, sd, models_dir=models)
    x = random_latents(16)
    with torch.no_grad():
        whole, again = phi(x, prompt=PROMPT, seeds=SEEDS), phi(x, prompt=PROMPT, seeds=SEEDS)
        rows = [phi(x[k : k + 1], prompt=PROMPT, seeds=SEEDS[k : k + 1]) for k in range(3)]
    assert {key: tuple(value.shape) for key, value in whole.items()} == {
        key: (3, *shape) for key, shape in expected.items()
    }
    for key, value in whole.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, again[key])
        close(torch.cat([row[key] for row in rows]), value, 1e-5)


@pytest.mark.parametrize("space", SPACES)
def test_spaces_of_pixels_are_known_before_they_are_loaded(space: str, sd: OneStepGenerator, models: Path) -> None:
    phi = features.build_features(SPACES[space][0], sd, models_dir=models)
    assert features.reads_pixels(phi, DrpoSpec()) == (space in PIXEL_SPACES)


@pytest.mark.parametrize("space", SPACES)
def test_gradients_reach_the_latents_and_nothing_else(space: str, sd: OneStepGenerator, models: Path) -> None:
    """Every key's gradient reaches every sample, is finite, and no weight of φ or of the generator gets one."""
    phi = features.build_features(SPACES[space][0], sd, models_dir=models)
    x = random_latents(16).requires_grad_()
    for value in phi(x, prompt=PROMPT, seeds=SEEDS).values():
        weights = [*own_weights(phi), *sd.parameters(), *sd.vae.parameters(), *sd.denoiser.parameters()]
        wanted = [weight for weight in weights if weight.requires_grad]
        assert len(wanted) == len(sd.parameters()) * 2  # listed twice: the adapter's, and by the U-Net
        reached, *others = torch.autograd.grad(value.square().sum(), [x, *wanted], retain_graph=True, allow_unused=True)
        assert torch.isfinite(reached).all()
        assert (reached.flatten(1).norm(dim=1) > 0).all()
        assert all(gradient is None for gradient in others)


def own_weights(phi: Any) -> list[Tensor]:
    model = getattr(phi, "model", None) or getattr(phi, "encoder", None)
    assert model is None or not model.training
    return [] if model is None else list(model.parameters())


@pytest.mark.parametrize(
    ("model", "space", "keys"),
    [
        ("tiny-turbo", tiny_contrastive.TinyContrastiveFeatures, ["mean", "layout"]),
        ("tiny-sd", latent_mae.LatentMaeFeatures, [f"layer4_{pool}" for pool in pooling.MAP_POOLS]),
        ("tiny-sdxl", VisionFeatures, ["layer3_patch_mean", "layer3_patch_std", "layer3_cls"]),
    ],
)
def test_auto_is_what_was_published_for_the_model(model: str, space: type, keys: list[str], models: Path) -> None:
    """auto: the label-free encoder for tiny-turbo; for SD the latent MAE, for SDXL ViT-MAE, with published keys."""
    phi: Any = features.build_features(FeaturesSpec(), generator_of(model, models), models_dir=models)
    assert isinstance(phi, space)
    assert list(phi.keys) == keys


@pytest.mark.parametrize("space", SPACES)
def test_an_unknown_key_is_refused_with_those_there_are(space: str, sd: OneStepGenerator, models: Path) -> None:
    """The message lists every key, and each that it lists is accepted."""
    spec = SPACES[space][0].model_copy(update={"keys": ("layer99_soup",)})
    told = refused(lambda: features.build_features(spec, sd, models_dir=models), "features.keys")
    listed = told.partition("there are ")[2].split(", ")
    assert set(SPACES[space][1]) <= set(listed)
    phi: Any = features.build_features(spec.model_copy(update={"keys": tuple(listed)}), sd, models_dir=models)
    assert list(phi.keys) == listed


@pytest.mark.parametrize(
    ("space", "command"),
    [
        ("vit_mae", "`dipole models fetch vit-mae --to {}/vit-mae-base`"),
        ("dinov2", "`dipole models fetch dinov2 --to {}/dinov2-base`"),
        ("clip", "`dipole models fetch clip --to {}/clip-vit-large-patch14`"),
        ("latent_mae", "`dipole models fetch latent-mae --to {}/drpo-mae-latent-256`"),
    ],
)
def test_absent_weights_are_refused_with_their_command(
    space: Any, command: str, sd: OneStepGenerator, tmp_path: Path
) -> None:
    """Nothing is downloaded: the error says how to fetch the published weights."""
    told = refused(
        lambda: features.build_features(FeaturesSpec(type=space), sd, models_dir=tmp_path), "features.weights"
    )
    assert command.format(tmp_path) in told


# ---- pooling, latents, tiny -----------------------------------------------------------------------------------------


def test_pooling_is_numpy_s_mean_and_spread_of_each_patch() -> None:
    """Whole and on 2×2 and 4×4 patches, row by row, against slices of an array."""
    grid = torch.randn(2, 5, 8, 12)
    array = grid.numpy()
    for pool, side in pooling.MAP_POOLS.items():
        height, width = (side, side) if side else (8, 12)
        cuts = [
            array[:, :, top : top + height, left : left + width].reshape(2, 5, -1)
            for top in range(0, 8, height)
            for left in range(0, 12, width)
        ]
        statistic = [cut.mean(-1) if pool.startswith("mean") else np.sqrt(cut.var(-1) + 1e-6) for cut in cuts]
        np.testing.assert_allclose(pooling.pool_map(grid, pool, key="k"), np.stack(statistic, 1), rtol=1e-5, atol=1e-6)


def test_the_spread_of_equal_values_has_a_gradient_of_zero() -> None:
    """Not infinite, as the root's would be."""
    grid = torch.ones(1, 2, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(pooling.pool_map(grid, "std", key="k").sum(), grid)
    assert torch.equal(gradient, torch.zeros_like(grid))


def test_patches_must_fill_the_map() -> None:
    """A map of 6×6 has no patches of 4×4: the key is named, as is the map's size."""
    told = refused(lambda: pooling.pool_map(torch.ones(1, 2, 6, 6), "std_4", key="layer4_std_4"), "features.keys")
    assert "'layer4_std_4' cuts a map into patches of 4×4, and at this resolution the map is 6×6" in told


def test_latents_are_one_vector_a_sample_and_can_be_pooled() -> None:
    """`latents` is the sample flattened; the other keys pool it."""
    x = random_latents(8)
    found = latents.LatentFeatures(["latents", "latents_mean", "latents_std_2"])(x, prompt=PROMPT, seeds=SEEDS)
    assert torch.equal(found["latents"], x.flatten(1)[:, None])
    assert torch.equal(found["latents_mean"], x.mean((2, 3))[:, None])
    assert found["latents_std_2"].shape == (3, 16, 4)


def test_the_labelled_encoder_s_keys_are_its_vectors_and_classes() -> None:
    """mean and layout of the quadrants, classes as probabilities, objects as their expected counts without `empty`."""
    encoder = tiny_labelled.TinyEncoder.load(TINY_TURBO / "encoders/tiny_labelled.safetensors")
    x = random_latents(8)
    found = tiny_labelled.TinyLabelledFeatures(encoder)(x, prompt=PROMPT, seeds=SEEDS)
    quadrants = encoder(x)
    shapes, colours = (logits.softmax(-1) for logits in encoder.classify(x))
    assert torch.equal(found["mean"], quadrants.mean(1, keepdim=True))
    assert torch.equal(found["layout"], quadrants.reshape(3, 1, 4 * 64))
    assert torch.equal(found["classes"], torch.cat([shapes, colours], -1).reshape(3, 1, 4 * 12))
    close(found["objects"][:, 0], torch.einsum("kqs,kqc->ksc", shapes[..., 1:], colours[..., 1:]).flatten(1), 1e-6)


def test_the_contrastive_encoder_s_keys_are_its_unit_vectors(models: Path) -> None:
    """Of 8×8 latents four vectors of 96 numbers and length 1: their mean, and all four in their places."""
    phi: Any = features.build_features(FeaturesSpec(), generator_of("tiny-turbo", models), models_dir=models)
    x = random_latents(8)
    found = phi(x, prompt=PROMPT, seeds=SEEDS)
    grid = phi.encoder(x, ["layer3"])["layer3"]
    assert grid.shape == (3, 96, 2, 2)
    units = [grid[:, :, row, column] / grid[:, :, row, column].norm(dim=1, keepdim=True) for row, column in QUADRANTS]
    close(found["mean"][:, 0], sum(units) / 4, 1e-6)
    close(found["layout"][:, 0], torch.cat(units, 1), 1e-6)


def test_another_contrastive_encoder_is_named_by_its_folder(models: Path, tmp_path: Path) -> None:
    """Its weights are used; a name that is not there is refused; a model of other latents is too."""
    other, generator = tiny_contrastive.make_encoder(), generator_of("tiny-turbo", models)
    (tmp_path / "mine").mkdir()
    save_file({name: value.half() for name, value in other.state_dict().items()}, tmp_path / "mine" / ENCODER_FILE)
    phi: Any = features.build_features(FeaturesSpec(weights="mine"), generator, models_dir=tmp_path)
    assert torch.equal(phi.encoder.conv1.weight, other.conv1.weight.half().float())
    refused(
        lambda: features.build_features(FeaturesSpec(weights="no"), generator, models_dir=tmp_path), "features.weights"
    )
    refused(lambda: phi(torch.zeros(1, 16, 8, 8), prompt=PROMPT, seeds=[0]), "features.type")


def test_jobs_of_before_go_on_in_the_labelled_encoder_s_features() -> None:
    assert FeaturesSpec.model_validate_json('{"type": "tiny"}').type == "tiny_labelled"


# ---- the latent MAE -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flax", [True, False])
@pytest.mark.parametrize("side", [32, 64])
def test_the_latent_mae_is_the_network_that_its_names_describe(flax: bool, side: int) -> None:
    """Every map and its pools equal a computation straight from the tensors, in both layouts and at both sizes."""
    x = random_latents(side)
    encoder = latent_mae.build_from_tensors(mae_tensors(flax=flax))
    maps = mae_maps(mae_tensors(flax=False), x)
    assert set(encoder.map_names()) == maps.keys()
    keys = list(pooling.map_keys(maps))
    found = latent_mae.LatentMaeFeatures(encoder, keys)(x, prompt=PROMPT, seeds=SEEDS)
    for name, grid in maps.items():
        for pool in pooling.MAP_POOLS:
            close(found[f"{name}_{pool}"], pooling.pool_map(grid, pool, key=name), 1e-4)
    assert found["layer4_std_2"].shape == (3, (side // 16) ** 2, MAE_WIDTHS[-1])


def mae_maps(tensors: Mapping[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """The published network, in functions: tensors in PyTorch's layout."""

    def conv(x: Tensor, name: str, stride: int = 1, padding: int = 1) -> Tensor:
        return functional.conv2d(x, tensors[f"encoder.{name}.weight"], None, stride, padding)

    def norm(x: Tensor, name: str) -> Tensor:
        groups = {8: 8, 12: 12, 40: 20, 20: 20}[x.shape[1]]
        scaled = (x.unflatten(1, (groups, -1)) - x.unflatten(1, (groups, -1)).mean((2, 3, 4), keepdim=True)) / (
            x.unflatten(1, (groups, -1)).var((2, 3, 4), correction=0, keepdim=True) + 1e-5
        ).sqrt()
        weight, bias = (tensors[f"encoder.{name}.{part}"][:, None, None] for part in ("weight", "bias"))
        return scaled.flatten(1, 2) * weight + bias

    x = norm(conv(x, "conv1"), "gn1").relu()
    maps = {"conv1": x}
    for i, depth in enumerate(MAE_DEPTHS):
        for j in range(depth):
            name, stride = f"stages_{i}.layers_{j}", 2 if i > 0 and j == 0 else 1
            moved = norm(conv(x, f"{name}.conv1", stride), f"{name}.gn1").relu()
            moved = norm(conv(moved, f"{name}.conv2"), f"{name}.gn2")
            beside = norm(conv(x, f"{name}.proj_conv", stride, 0), f"{name}.proj_gn") if stride == 2 else x
            x = (beside + moved).relu()
            if j == 1 and depth > 2:
                maps[f"layer{i + 1}_blk2"] = x
        maps[f"layer{i + 1}"] = x = norm(x, f"layer{i + 1}_norm")
    return maps


@pytest.mark.parametrize(("channels", "groups"), [(4, 4), (32, 32), (48, 24), (64, 32), (100, 25), (37, 1), (768, 32)])
def test_group_norm_takes_the_most_groups_up_to_32_that_divide(channels: int, groups: int) -> None:
    """The published rule; no width is written in the file."""
    assert latent_mae.make_group_norm(channels).num_groups == groups


def test_the_latent_mae_is_read_from_every_way_it_is_kept(sd: OneStepGenerator, tmp_path: Path) -> None:
    """Bare, under state_dict or model_state_dict, with the prefixes of wrapped modules, and as safetensors."""
    tensors = {name: value.contiguous() for name, value in mae_tensors().items()}
    torch.save(tensors, tmp_path / "bare.pth")
    torch.save({"model_state_dict": {f"module.{name}": v for name, v in tensors.items()}}, tmp_path / "ddp.pth")
    torch.save({"state_dict": {f"module._orig_mod.{n}": v for n, v in tensors.items()}}, tmp_path / "compiled.pth")
    save_file(tensors, tmp_path / "mae.safetensors")
    x = random_latents(64)
    found = []
    for name in ("bare.pth", "ddp.pth", "compiled.pth", "mae.safetensors"):
        phi = features.build_features(FeaturesSpec(type="latent_mae", weights=name), sd, models_dir=tmp_path)
        found.append(phi(x, prompt=PROMPT, seeds=SEEDS)["layer4_mean_4"])
    assert all(torch.equal(each, found[0]) for each in found)


class Payload:
    """Makes a file when unpickled, as hostile weights would."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_file_that_needs_unpickling_is_refused_and_not_run(sd: OneStepGenerator, tmp_path: Path) -> None:
    """torch.load reads tensors alone: what a pickle would call is not called."""
    torch.save({"state_dict": mae_tensors(), "metadata": Payload(tmp_path / "ran")}, tmp_path / "evil.pth")
    spec = FeaturesSpec(type="latent_mae", weights="evil.pth")
    told = refused(lambda: features.build_features(spec, sd, models_dir=tmp_path), "features.weights")
    assert "evil.pth holds more than tensors" in told
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"epoch": 3}, "holds no tensors by name"),
        ([torch.ones(2)], "holds no tensors by name"),
        ({"fc.weight": torch.ones(2)}, "these are not a latent MAE's: gn1.weight is missing"),
        ({**mae_tensors(), "encoder.gn1.bias": torch.ones(3)}, "a tensor is (3,) where the others ask for (8,)"),
    ],
)
def test_other_weights_are_not_taken_for_a_latent_mae(
    content: Any, told: str, sd: OneStepGenerator, tmp_path: Path
) -> None:
    """What is missing or misfits is said, on features.weights."""
    torch.save(content, tmp_path / "other.pth")
    spec = FeaturesSpec(type="latent_mae", weights="other.pth")
    assert told in refused(lambda: features.build_features(spec, sd, models_dir=tmp_path), "features.weights")


def test_a_cut_file_is_not_whole(sd: OneStepGenerator, tmp_path: Path) -> None:
    """A download that stopped is an answer, not a traceback."""
    torch.save(mae_tensors(), tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:-1000])
    spec = FeaturesSpec(type="latent_mae", weights="cut.pth")
    told = refused(lambda: features.build_features(spec, sd, models_dir=tmp_path), "features.weights")
    assert "cut.pth is not a whole PyTorch file" in told


def test_latents_of_other_channels_are_refused() -> None:
    """An MAE of four channels says so to a model of sixteen."""
    phi = latent_mae.LatentMaeFeatures(latent_mae.build_from_tensors(mae_tensors()))
    told = refused(lambda: phi(torch.zeros(1, 16, 32, 32), prompt=PROMPT, seeds=[0]), "features.type")
    assert "reads latents of 4 channels, and the model's have 16" in told


# ---- vision transformers on pixels ----------------------------------------------------------------------------------

MODELS: dict[str, tuple[str, Any]] = {
    "vit_mae": ("vit-mae-base", transformers.ViTMAEModel),
    "dinov2": ("dinov2-base", transformers.Dinov2Model),
    "clip": ("clip-vit-large-patch14", transformers.CLIPVisionModel),
}


@pytest.mark.parametrize("space", MODELS)
def test_vision_keys_are_the_model_s_own_hidden_states(space: Any, sd: OneStepGenerator, models: Path) -> None:
    """Every layer's tokens as transformers reports them for the same images, pooled with NumPy."""
    name, model_class = MODELS[space]
    keys = tuple(f"layer{n}_{part}" for n in (1, 2, 3) for part in ("patch_mean", "patch_std", "cls"))
    x = random_latents(8)
    with torch.no_grad():
        found = features.build_features(FeaturesSpec(type=space, keys=keys), sd, models_dir=models)(
            x, prompt=PROMPT, seeds=SEEDS
        )
        images = ImagePreprocessor.from_folder(models / name, device=sd.device)(sd.decode_pixels(x))
        options = {"mask_ratio": 0.0} if space == "vit_mae" else {}
        reference = model_class.from_pretrained(str(models / name), **options).eval()
        more = {"noise": torch.linspace(0, 1, 16).expand(3, 16)} if space == "vit_mae" else {}
        states = [state.numpy() for state in reference(images, output_hidden_states=True, **more).hidden_states]
    for n in (1, 2, 3):
        cls, patches = states[n][:, :1], states[n][:, 1:]
        assert patches.shape[1] == (4 if space == "dinov2" else 16)
        np.testing.assert_allclose(found[f"layer{n}_cls"], cls, atol=1e-5)
        np.testing.assert_allclose(found[f"layer{n}_patch_mean"], patches.mean(1, keepdims=True), atol=1e-5)
        spread = np.sqrt(patches.var(1, keepdims=True) + 1e-6)
        np.testing.assert_allclose(found[f"layer{n}_patch_std"], spread, atol=1e-5)


def test_vit_mae_sees_every_patch(models: Path) -> None:
    """Each patch of the image has a gradient: none is masked, though the checkpoint's config masks three quarters."""
    assert json.loads((models / "vit-mae-base/config.json").read_text())["mask_ratio"] == 0.75
    pixels = torch.rand(1, 3, 32, 32, requires_grad=True)
    no_decoder: Any = SimpleNamespace(device=torch.device("cpu"), decode_pixels=lambda x: x)
    phi = vit_mae.load_vit_mae_features(FeaturesSpec(), no_decoder, models)
    phi(pixels, prompt=PROMPT, seeds=[0])["layer3_cls"].square().sum().backward()
    assert pixels.grad is not None
    assert (pooling.cut_patches(pixels.grad.abs(), 8).sum((2, 3)) > 0).all()


@pytest.mark.parametrize("size", [(96, 96), (20, 20), (32, 32)])
def test_images_are_prepared_as_the_model_s_own_processor_does(size: tuple[int, int], tmp_path: Path) -> None:
    """Against transformers' Pillow processor on 8-bit images, within 1.25/255 before the division by std: Pillow
    rounds to 8 bits after each of its two passes, and clamps what overshoots, so the image is neither black nor white.
    """
    mean, std = IMAGENET
    processor = ViTImageProcessorPil(size=32, resample=Image.Resampling.BICUBIC, image_mean=mean, image_std=std)
    processor.save_pretrained(str(tmp_path))
    image = np.random.default_rng(0).integers(80, 176, (*size, 3), dtype=np.uint8)
    theirs = torch.as_tensor(np.asarray(processor(Image.fromarray(image), return_tensors="np")["pixel_values"]))
    prepare = ImagePreprocessor.from_folder(tmp_path, device=torch.device("cpu"))
    ours = prepare(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)
    assert ours.shape == theirs.shape == (1, 3, 32, 32)
    assert ((ours - theirs).abs() * torch.tensor(std)[:, None, None]).max() < 1.25 / 255


def test_what_a_decoder_overshoots_is_clamped_first() -> None:
    """The model sees images from 0 to 1, as it was trained on."""
    prepare = ImagePreprocessor(8, torch.zeros(3, 1, 1), torch.ones(3, 1, 1))
    images = 3 * torch.rand(1, 3, 16, 16) - 1
    assert torch.equal(prepare(images), prepare(images.clamp(0, 1)))


@pytest.mark.parametrize(
    ("config", "size"),
    [
        ({"size": 224}, 224),
        ({"size": {"height": 224, "width": 224}}, 224),
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True}, 224),
        ({"size": 256, "crop_size": 224, "do_center_crop": True}, 224),
        ({"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": False}, 256),
    ],
)
def test_the_size_is_the_one_that_the_processor_ends_with(config: dict[str, Any], size: int, tmp_path: Path) -> None:
    """Old and new ways to write it; a crop's size where it crops."""
    mean, std = IMAGENET
    written = {**config, "image_mean": mean, "image_std": std}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(written))
    assert ImagePreprocessor.from_folder(tmp_path, device=torch.device("cpu")).size == size


def test_a_processor_without_mean_or_size_is_refused(tmp_path: Path) -> None:
    """On features.weights, with the file's path."""
    (tmp_path / "preprocessor_config.json").write_text('{"size": 224}')
    told = refused(lambda: ImagePreprocessor.from_folder(tmp_path, device=torch.device("cpu")), "features.weights")
    assert str(tmp_path / "preprocessor_config.json") in told


def test_a_model_of_another_kind_or_with_holes_is_refused(sd: OneStepGenerator, models: Path, tmp_path: Path) -> None:
    """transformers would fill what is missing with random numbers, and go on."""
    spec = FeaturesSpec(type="dinov2", weights="vit-mae-base")
    told = refused(lambda: features.build_features(spec, sd, models_dir=models), "features.weights")
    assert "is a vit_mae, not a dinov2" in told

    model = transformers.Dinov2Model.from_pretrained(str(models / "dinov2-base"))
    kept = {name: value for name, value in model.state_dict().items() if name != "layernorm.bias"}
    model.save_pretrained(str(tmp_path / "holes"), state_dict=kept)
    (tmp_path / "holes/preprocessor_config.json").write_bytes(
        (models / "dinov2-base/preprocessor_config.json").read_bytes()
    )
    spec = FeaturesSpec(type="dinov2", weights="holes")
    told = refused(lambda: features.build_features(spec, sd, models_dir=tmp_path), "features.weights")
    assert "lacks 1 of the model's weights, such as layernorm.bias" in told


def test_vit_mae_s_older_weights_are_read_too(sd: OneStepGenerator, models: Path, tmp_path: Path) -> None:
    """facebook/vit-mae-base was published as pytorch_model.bin: the same features come from it."""
    folder = tmp_path / "vit-mae-base"
    folder.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (folder / name).write_bytes((models / "vit-mae-base" / name).read_bytes())
    model = transformers.ViTMAEForPreTraining.from_pretrained(str(models / "vit-mae-base"))
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    x = random_latents(8)
    old, new = (
        features.build_features(FeaturesSpec(type="vit_mae"), sd, models_dir=path)(x, prompt=PROMPT, seeds=SEEDS)
        for path in (tmp_path, models)
    )
    assert all(torch.equal(old[key], new[key]) for key in new)


# ---- the teacher's U-Net --------------------------------------------------------------------------------------------


class Recorded:
    """A generator's `hidden` that gives the noised latents back as every block's map."""

    def __call__(self, x_t: Tensor, timestep: int, prompt: str, blocks: Sequence[str]) -> dict[str, Tensor]:
        self.x_t, self.asked = x_t, (timestep, prompt, tuple(blocks))
        return dict.fromkeys(blocks, x_t)


def test_teacher_noise_is_the_seed_s_and_not_the_one_that_made_the_sample(sd: OneStepGenerator) -> None:
    """x + 0.1·ε: ε is the same for x and x_ref of one seed, another for another seed, and not the sample's own."""
    blocks = ["down_blocks.2", "mid_block", "up_blocks.0"]
    recorded = Recorded()
    phi = teacher_unet.TeacherUnetFeatures(recorded, blocks, FeaturesSpec(type="teacher_unet"))
    x, x_ref = random_latents(8), random_latents(8, seed=9)
    phi(x, prompt=PROMPT, seeds=SEEDS)
    assert recorded.asked == (100, PROMPT, tuple(blocks))
    drawn = (recorded.x_t - x) / 0.1
    phi(x_ref, prompt=PROMPT, seeds=SEEDS)
    close((recorded.x_t - x_ref) / 0.1, drawn, 1e-5)
    phi(x[1:], prompt=PROMPT, seeds=SEEDS[1:])
    close((recorded.x_t - x[1:]) / 0.1, drawn[1:], 1e-5)
    assert 0.8 < drawn.std() < 1.2
    flat = torch.cat([drawn, sd.draw_noise(SEEDS)]).flatten(1)
    assert (torch.corrcoef(flat) - torch.eye(6)).abs().max() < 0.35
    assert FeaturesSpec().noise == 0.1
    teacher_unet.TeacherUnetFeatures(recorded, blocks, FeaturesSpec(noise=0))(x, prompt=PROMPT, seeds=SEEDS)
    assert recorded.x_t is x


def test_teacher_maps_are_averaged_over_squares_into_one_vector() -> None:
    """4×4 squares by default, as one vector a sample; a map smaller than a square becomes its mean."""
    for side, squares in ((8, 4), (9, 4), (4, 1), (2, 1)):
        grid = torch.randn(2, 3, side, side)
        phi = teacher_unet.TeacherUnetFeatures(Recorded(), ["mid_block"], FeaturesSpec(noise=0, keys=("mid_block",)))
        found = phi(grid, prompt=PROMPT, seeds=[1, 2])["mid_block"]
        edge, count = min(4, side), int(squares**0.5)
        means = [
            grid[:, :, row * edge : (row + 1) * edge, column * edge : (column + 1) * edge].mean((2, 3))
            for row in range(count)
            for column in range(count)
        ]
        assert found.shape == (2, 1, 3 * squares)
        close(found[:, 0], torch.stack(means, 2).flatten(1), 1e-6)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_the_teacher_is_the_frozen_base(name: str, models: Path, request: pytest.FixtureRequest) -> None:
    """Its maps are those of a whole call of the pipeline's own U-Net, before and after the adapter was trained."""
    generator: OneStepGenerator = request.getfixturevalue(name)
    keys = ("down_blocks.1", "mid_block", "up_blocks.0")
    spec = FeaturesSpec(type="teacher_unet", keys=keys, timestep=100, pool=1)
    phi = features.build_features(spec, generator, models_dir=models)
    x = random_latents(8)
    fresh = generator_of(f"tiny-{name}", models)  # its adapter changes nothing yet
    expected: dict[str, Tensor] = {}
    for key in keys:
        fresh.denoiser.get_submodule(key).register_forward_hook(
            lambda module, inputs, output, key=key: expected.update(
                {key: output[0] if type(output) is tuple else output}
            )
        )
    before = {parameter: parameter.detach().clone() for parameter in generator.parameters()}
    with torch.no_grad():
        noised = x + 0.1 * teacher_unet.draw_noise(x.shape[1:], SEEDS)
        fresh.denoiser(noised, torch.tensor(100), **fresh._conditioning([PROMPT], 3))
        for parameter in generator.parameters():
            parameter.fill_(0.5)
        found = phi(x, prompt=PROMPT, seeds=SEEDS)
        other = phi(x, prompt="a blue square", seeds=SEEDS)
        for parameter, value in before.items():
            parameter.copy_(value)
    for key in keys:
        close(found[key][:, 0], expected[key].flatten(1), 1e-5)
        assert not torch.equal(found[key], other[key])  # the prompt is told to it


# ---- helpers --------------------------------------------------------------------------------------------------------


def random_latents(side: int, *, seed: int = 0) -> Tensor:
    return torch.randn(3, 4, side, side, generator=torch.Generator().manual_seed(seed))


def close(one: Tensor, other: Tensor, tolerance: float) -> None:
    """Equal to within `tolerance` of the largest value."""
    assert one.shape == other.shape
    assert (one - other).abs().max() <= tolerance * other.abs().max()


def refused(call: Callable[[], object], field: str) -> str:
    with pytest.raises(InvalidInput) as caught:
        call()
    assert caught.value.field == field
    return str(caught.value)


# ---- files as others leave them -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_linked_file_of_weights_is_read(sd: OneStepGenerator, models: Path, tmp_path: Path, suffix: str) -> None:
    """The link has the name; what it leads to may be called anything."""
    blob = tmp_path / "0123456789abcdef"
    published = models / "drpo-mae-latent-256/mae_latent_256_torch.pth"
    if suffix == ".pth":
        shutil.copyfile(published, blob)
    else:
        tensors = torch.load(published, weights_only=True)["state_dict"]
        save_file({name: value.contiguous() for name, value in tensors.items()}, blob)
    (tmp_path / f"mae{suffix}").symlink_to(blob)
    spec = FeaturesSpec(type="latent_mae", weights=f"mae{suffix}")
    phi = features.build_features(spec, sd, models_dir=tmp_path)
    theirs = features.build_features(FeaturesSpec(type="latent_mae"), sd, models_dir=models)
    x = torch.randn(3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    one, other = (each(x, prompt=PROMPT, seeds=SEEDS) for each in (phi, theirs))
    assert all(torch.allclose(one[key], other[key]) for key in other)


def copy_model(models: Path, folder: Path) -> Path:
    """dinov2 under a name that people give."""
    return shutil.copytree(models / "dinov2-base", folder / "mein Modell é")


def load(sd: OneStepGenerator, folder: Path) -> Any:
    spec = FeaturesSpec(type="dinov2", weights=folder.name)
    return features.build_features(spec, sd, models_dir=folder.parent)


def test_a_variant_of_a_vision_model_is_read(sd: OneStepGenerator, models: Path, tmp_path: Path) -> None:
    """What was found is what is loaded."""
    folder = copy_model(models, tmp_path)
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    x = sd.draw_noise(SEEDS)
    plain = features.build_features(FeaturesSpec(type="dinov2"), sd, models_dir=models)
    one, other = (each(x, prompt=PROMPT, seeds=SEEDS) for each in (load(sd, folder), plain))
    assert all(torch.allclose(one[key], other[key]) for key in other)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize(
    "content", [b"{", b"[1]", b"\xff\xfe{}", b"[" * 10**5, b'{"model_type": ["dinov2"]}', b'{"model_type": "dinov2", '
                b'"hidden_size": "wide"}', b'{"image_mean": "red", "image_std": [1], "size": 3}'],
)  # fmt: skip
def test_odd_json_of_a_vision_model_is_its_folders_fault(
    sd: OneStepGenerator, models: Path, tmp_path: Path, name: str, content: bytes
) -> None:
    folder = copy_model(models, tmp_path)
    (folder / name).write_bytes(content)
    with pytest.raises(InvalidInput) as caught:
        load(sd, folder)
    assert caught.value.field == "features.weights"


def test_a_safetensors_file_of_unknown_numbers_is_told(sd: OneStepGenerator, tmp_path: Path) -> None:
    """Its length is right, and what it calls its numbers is not."""
    header = json.dumps({"gn1.weight": {"dtype": "Q7", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "mae.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    spec = FeaturesSpec(type="latent_mae", weights="mae.safetensors")
    with pytest.raises(InvalidInput, match="not a whole safetensors file") as caught:
        features.build_features(spec, sd, models_dir=tmp_path)
    assert caught.value.field == "features.weights"
