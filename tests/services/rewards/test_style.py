"""Reward `style` on small random networks of both kinds, against transformers' own preprocessing and numpy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import BitImageProcessorPil, CLIPImageProcessorPil, CLIPModel, Dinov2Config, Dinov2Model

from dipole import conformance
from dipole.conformance.inputs import oversized_png
from dipole.errors import ConfigurationError
from dipole_rewards import tiny_weights
from dipole_rewards.reward import CandidateImages, Pixels, RewardFault, check_golden
from dipole_rewards.rewards.style import Style
from dipole_rewards.settings import StyleSettings

from ..conftest import Process

RNG = np.random.default_rng(7)
SIZES = [(40, 56), (64, 31), (33, 33), (90, 50), (25, 70), (48, 48)]


def noise(height: int, width: int) -> Pixels:
    return np.asarray(Image.fromarray(RNG.integers(0, 256, (6, 6, 3), np.uint8)).resize((width, height)))


PICTURES, IMAGES = [noise(*size) for size in SIZES], [noise(*size) for size in SIZES[::-1]]


def write_dinov2(folder: Path) -> None:
    config: dict[str, Any] = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14
    }  # fmt: skip
    torch.manual_seed(0)
    network: Any = Dinov2Model(Dinov2Config(**config))
    for name, parameter in network.named_parameters():
        # what is the same for every image stays small
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.02 if "cls_token" in name or "position" in name else 0.5)
    save_file(network.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "dinov2", **config}))


def write_folder(made: Path, kind: str) -> Path:
    """Weights, and pictures beside them: one in a folder of its own, and a file that is none of them."""
    if kind == "dinov2":
        write_dinov2(made)
    else:
        tiny_weights.write_weights(made, "clip")
    (made / "pictures/more").mkdir(parents=True)
    for number, picture in enumerate(PICTURES):
        where = made / "pictures" / ("more" if number == 3 else "")
        Image.fromarray(picture).save(where / f"{number}.png")
    (made / "pictures/.DS_Store").write_bytes(b"\0")
    return made


@pytest.fixture(scope="module", params=["dinov2", "clip"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp(request.param), request.param)


def embed(folder: Path, images: list[Pixels]) -> np.ndarray[Any, Any]:
    """(K, D), of length 1, by transformers' own processor and model."""
    pictures = [Image.fromarray(image) for image in images]
    network: Any
    processor: Any
    if json.loads((folder / "config.json").read_text())["model_type"] == "dinov2":
        network = Dinov2Model.from_pretrained(folder).eval()
        processor = BitImageProcessorPil(
            size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224},
            image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
        )  # fmt: skip
        with torch.no_grad():
            rows = network(**processor(pictures, return_tensors="pt")).last_hidden_state[:, 0]
    else:
        network = CLIPModel.from_pretrained(folder).eval()
        side = network.config.vision_config.image_size
        processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        with torch.no_grad():
            rows = network.get_image_features(**processor(pictures, return_tensors="pt")).pooler_output
    found = rows.numpy().astype(np.float64)
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))


def load(folder: Path, **settings: Any) -> Style:
    return Style.from_settings(
        StyleSettings(**{"reward_weights": folder, "reward_dtype": "fp32", "style_nearest": 3, **settings}), "cpu"
    )


def test_the_score_is_the_mean_cosine_of_the_nearest_pictures(folder: Path) -> None:
    """With the nearest and the mean of all as sub-scores, alone or together with other groups; thin has a reason."""
    reward = load(folder)
    thin = np.zeros((1, 300, 3), np.uint8)
    first, second = reward.score_groups([CandidateImages("a", IMAGES[:2]), CandidateImages("b", [*IMAGES[2:], thin])])
    cosines = np.sort(embed(folder, IMAGES) @ embed(folder, PICTURES).T, axis=1)  # (K, N), the nearest last
    assert np.ptp(cosines) > 0.05, "these networks tell pictures apart"
    assert [*first.scores, *second.scores[:-1]] == pytest.approx(cosines[:, -3:].mean(1), abs=2e-5)
    assert first.sub_scores is not None
    for parts, row in zip(first.sub_scores, cosines, strict=False):
        assert parts == pytest.approx({"nearest": row[-1], "mean": row.mean()}, abs=2e-5)
    assert (second.scores[-1], second.errors[4].code) == (None, "aspect_ratio")


def test_a_picture_of_the_folder_is_nearest_to_itself(folder: Path) -> None:
    """With m = 1 its score is 1, which is what `nearest` tells of a model that copies."""
    reward = load(folder, style_nearest=1)
    assert reward.score(prompt="", images=PICTURES[:2], metadata=None).scores == pytest.approx([1, 1], abs=1e-5)


def test_each_start_is_held_against_the_first(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the same weights and pictures; another picture or another m is another recipe, and begins anew."""
    for name, value in {"WEIGHTS": folder, "STATE": tmp_path, "DTYPE": "fp32"}.items():
        monkeypatch.setenv(f"DIPOLE_REWARD_{name}", str(value))
    first = Style.load("cpu")
    assert first.verified is None
    check_golden(first)
    file = tmp_path / "recorded-scores.json"
    kept = json.loads(file.read_text())
    kept["scores"][0]["score"] += 0.1
    file.write_text(json.dumps(kept))
    with pytest.raises(RewardFault) as caught:
        check_golden(Style.load("cpu"))
    assert caught.value.code == "golden_changed"
    monkeypatch.setenv("DIPOLE_STYLE_NEAREST", "2")
    other = Style.load("cpu")
    check_golden(other)
    assert other.recipe_version != first.recipe_version
    Image.fromarray(PICTURES[0][::-1]).save(tmp_path / "upside-down.png")
    for number, picture in enumerate(PICTURES[1:]):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    file.rename(tmp_path / ".recorded")
    assert load(folder, style_images=tmp_path, style_nearest=2).recipe_version != other.recipe_version


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("broken.png", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "broken.png"),
        ("cut.jpg", b"\xff\xd8\xff\xe0", "cut.jpg"),
        ("notes.txt", b"what they have in common", "notes.txt is plain text: only PNG, JPEG and WebP"),
        ("moving.gif", b"GIF89a", "moving.gif is a GIF image"),
        ("empty.png", b"", "empty.png is empty"),
    ],
)
def test_a_file_that_is_no_picture_is_named(name: str, content: bytes, told: str, folder: Path, tmp_path: Path) -> None:
    """The service does not start with less than it was given."""
    Image.fromarray(PICTURES[0]).save(tmp_path / "a.png")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        load(folder, style_images=tmp_path, style_nearest=1)
    assert told in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_picture_is_measured_before_it_is_decoded(folder: Path, tmp_path: Path) -> None:
    """A small file that says it is enormous is refused by what its header says."""
    (tmp_path / "huge.png").write_bytes(oversized_png())
    with pytest.raises(ConfigurationError, match=r"huge\.png has 10000x10000 = 100000000 pixels"):
        load(folder, style_images=tmp_path, style_nearest=1)


def test_what_is_missing_is_told_with_its_setting(folder: Path, tmp_path: Path) -> None:
    """A folder that is not there, too few pictures, and a model of another kind."""
    with pytest.raises(ConfigurationError, match=r"none is no folder: .* DIPOLE_STYLE_IMAGES"):
        load(folder, style_images=tmp_path / "none")
    with pytest.raises(ConfigurationError, match="holds 6 pictures, fewer than DIPOLE_STYLE_NEAREST=7"):
        load(folder, style_nearest=7)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ConfigurationError, match="'vit'; style takes dinov2 or clip"):
        load(tmp_path, style_images=folder / "pictures")


def test_it_is_served(tmp_path: Path, serve_process: Process) -> None:
    """On a folder that has weights and pictures, with the checks that a reward itself can fail."""
    write_folder(tmp_path, "dinov2")
    with serve_process("style", WEIGHTS=str(tmp_path), MAX_BODY_BYTES="3000000") as url:
        results = conformance.run_checks(url, only=["scores_something", "tells_images_apart", "deterministic"])
    assert [result.outcome for result in results] == ["passed"] * 3
