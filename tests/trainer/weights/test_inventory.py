"""What a worker says it can load: whole weights by the names that jobs give, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save_file

from dipole_trainer.generators.tiny_pipelines import write_pipeline
from dipole_trainer.weights.inventory import list_local_weights, weights_names


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


def fill_cache(cache: Path, name: str, source: Path, commit: str, branch: str | None) -> None:
    """As huggingface_hub lays a snapshot out."""
    repository = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(source, repository / "snapshots" / commit)
    if branch is not None:
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / branch).write_text(commit)


def test_folders_and_the_cache_are_listed_with_their_kinds(tmp_path: Path, cache: Path) -> None:
    """A folder's name, a hub id at its main revision, and each revision; names that a job gives find their own."""
    models = tmp_path / "models"
    write_pipeline(models / "sd-turbo", "sd")
    write_pipeline(models / "mine@home", "sdxl")
    commit = "a" * 40
    fill_cache(cache, "org/hubbed", models / "sd-turbo", commit, "main")
    fill_cache(cache, "org/pinned", models / "mine@home", commit, None)
    found = list_local_weights(models).models
    assert found == {
        "tiny-turbo": "tiny", "sd-turbo": "sd", "mine@home": "sdxl", "org/hubbed": "sd", "org/hubbed@main": "sd",
        f"org/hubbed@{commit}": "sd", f"org/pinned@{commit}": "sdxl",
    }  # fmt: skip
    for name, revision, is_there in (
        ("sd-turbo", None, True), ("stabilityai/sd-turbo", None, True), ("other/sd-turbo", None, True),
        ("sdxl-turbo", None, False), ("mine@home", None, True), ("org/hubbed", None, True), ("hubbed", None, False),
        ("org/hubbed", commit, True), ("org/hubbed", "b" * 40, False), ("org/pinned", None, False),
        ("org/pinned", commit, True),
    ):  # fmt: skip
        assert any(each in found for each in weights_names(name, revision)) == is_there, (name, revision)


def test_what_is_not_whole_is_not_listed(tmp_path: Path, cache: Path) -> None:
    """A download that goes on, a folder of something else, a models folder that is not there."""
    assert list_local_weights(tmp_path / "none").models == {"tiny-turbo": "tiny"}
    models = tmp_path / "models"
    write_pipeline(models / "tiny-sd", "sd")
    weights = models / "tiny-sd/unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (models / "notes").mkdir()
    (models / "file.txt").touch()
    assert list_local_weights(models).models == {"tiny-turbo": "tiny"}


def test_features_are_listed_by_space(tmp_path: Path, cache: Path) -> None:
    """By the files that each space loads: the published name of one, a folder of another; `torch` takes no part."""
    models = tmp_path / "models"
    (models / "drpo-mae-latent-256").mkdir(parents=True)
    (models / "drpo-mae-latent-256/mae_latent_256_torch.pth").write_bytes(b"x")
    features = list_local_weights(models).features
    others: dict[str, list[str]] = {"tiny_contrastive": [], "vit_mae": [], "dinov2": [], "clip": []}
    assert features == {"latent_mae": ["drpo-mae-latent-256"], **others}


def test_tiny_decoders_are_listed_by_the_kind_of_model(tmp_path: Path, cache: Path) -> None:
    """The package's always; a published one where both of its files are whole."""
    assert list_local_weights(tmp_path).decoders == ["tiny"]
    (tmp_path / "taesdxl").mkdir()
    (tmp_path / "taesdxl/config.json").write_text("{}")
    assert list_local_weights(tmp_path).decoders == ["tiny"]
    save_file({"weight": np.zeros(1)}, tmp_path / "taesdxl/diffusion_pytorch_model.safetensors")
    assert list_local_weights(tmp_path).decoders == ["tiny", "sdxl"]
