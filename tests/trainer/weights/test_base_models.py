"""Names of base models: what the API takes, and what the worker finds or says is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from dipole.errors import InvalidInput
from dipole_trainer.generators import tiny_pipelines
from dipole_trainer.weights import base_models


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole pipeline folder, to be copied or linked."""
    return tiny_pipelines.write_pipeline(tmp_path_factory.mktemp("pipelines") / "tiny-sdxl", "sdxl")


def put(pipeline: Path, folder: Path, without: str = "") -> Path:
    """The pipeline at `folder` as links, without one of its files."""
    for path in pipeline.rglob("*"):
        if path.is_file() and str(path.relative_to(pipeline)) != without:
            target = folder / path.relative_to(pipeline)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    return folder


def test_the_api_takes_known_names_folders_and_hub_ids(pipeline: Path, tmp_path: Path) -> None:
    """Weights of known names and hub ids need not be on its machine."""
    put(pipeline, tmp_path / "mine")
    for name in ("tiny-turbo", "sd-turbo", "sdxl-turbo", "mine", "org/name", "an-org/a.model_v1"):
        base_models.check_model_name(name, tmp_path)
    assert base_models.available_models(tmp_path) == ["tiny-turbo", *base_models.PUBLISHED_MODELS, "mine"]


@pytest.mark.parametrize(
    "name",
    ["other", "../mine", "/etc", "org/../mine", "org/..", "./mine", "a/b/c", "org/", "", "..", ".hidden", "a\nb"],
)
def test_other_names_and_paths_are_unknown(pipeline: Path, tmp_path: Path, name: str) -> None:
    """For API and worker alike, and the answer lists what is known."""
    put(pipeline, tmp_path / "mine")
    (tmp_path / "other").mkdir()
    for ask in (base_models.check_model_name, base_models.locate_pipeline):
        with pytest.raises(InvalidInput, match=r"unknown model .*tiny-turbo, sd-turbo, sdxl-turbo, .*, mine") as caught:
            ask(name, tmp_path)
        assert caught.value.field == "model"


def test_checking_a_name_needs_neither_torch_nor_the_hub() -> None:
    """The API's image has neither."""
    code = (
        "import sys; from pathlib import Path; from dipole_trainer.weights import base_models\n"
        "base_models.check_model_name('sd-turbo', Path('.'))\n"
        "assert not {'torch', 'diffusers', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_worker_finds_a_folder_or_the_cache(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of the name first, then the hub's cache, by the repository that a known name means."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    models = tmp_path / "models"
    assert base_models.locate_pipeline("tiny-turbo", models) == "tiny-turbo"
    commit = "a" * 40
    repository = tmp_path / "hub/models--stabilityai--sdxl-turbo"
    snapshot = put(pipeline, repository / f"snapshots/{commit}")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    assert base_models.locate_pipeline("sdxl-turbo", models) == str(snapshot)
    assert base_models.locate_pipeline("stabilityai/sdxl-turbo", models) == str(snapshot)
    assert base_models.locate_pipeline("sdxl-turbo", models, commit) == str(snapshot)
    own = put(pipeline, models / "sdxl-turbo")
    assert base_models.locate_pipeline("sdxl-turbo", models) == str(own)


def test_missing_weights_are_told_with_the_command_that_fetches_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with the paths that were looked at."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(InvalidInput, match="dipole models fetch sd-turbo --to ") as caught:
        base_models.locate_pipeline("sd-turbo", tmp_path / "models")
    assert str(tmp_path / "models/sd-turbo") in str(caught.value)
    assert str(tmp_path / "hub") in str(caught.value)
    assert caught.value.field == "model"


@pytest.mark.parametrize(
    "missing",
    [
        "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors", "text_encoder_2/config.json", "tokenizer/tokenizer.json",
        "tokenizer_2/tokenizer_config.json", "scheduler/scheduler_config.json",
    ],
)  # fmt: skip
def test_every_part_of_a_pipeline_is_looked_for(pipeline: Path, tmp_path: Path, missing: str) -> None:
    """What a download that stopped half-way lacks is named."""
    put(pipeline, tmp_path / "mine", without=missing)
    with pytest.raises(InvalidInput, match=missing.replace(".", r"\.")) as caught:
        base_models.locate_pipeline("mine", tmp_path)
    assert caught.value.field == "model"


def test_a_sharded_weight_needs_each_shard(pipeline: Path, tmp_path: Path) -> None:
    """An index does for the whole file when all that it lists is there."""
    weight = "unet/diffusion_pytorch_model"
    folder = put(pipeline, tmp_path / "mine", without=f"{weight}.safetensors")
    shards = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    (folder / f"{weight}.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": shards[0], "b": shards[1]}})
    )
    for shard in shards:
        with pytest.raises(InvalidInput, match="missing"):
            base_models.locate_pipeline("mine", tmp_path)
        (folder / "unet" / shard).symlink_to(pipeline / f"{weight}.safetensors")
    assert base_models.locate_pipeline("mine", tmp_path) == str(folder)


def test_parts_that_no_generator_loads_may_be_absent(pipeline: Path, tmp_path: Path) -> None:
    """A safety checker that the index names is not asked for."""
    folder = put(pipeline, tmp_path / "mine", without="model_index.json")
    index = json.loads((pipeline / "model_index.json").read_text())
    named = {**index, "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    (folder / "model_index.json").write_text(json.dumps(named))
    assert base_models.locate_pipeline("mine", tmp_path) == str(folder)


def test_what_is_built_in_has_no_revision(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="tiny-turbo is built in") as caught:
        base_models.locate_pipeline("tiny-turbo", tmp_path, "main")
    assert caught.value.field == "revision"


# ---- names and sizes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["my model (v2)", "モデル", "modèle", 'say "red"', "a b.c+d"])
def test_a_folder_is_called_as_people_call_it(pipeline: Path, tmp_path: Path, name: str) -> None:
    """For API and worker alike, and it is listed."""
    put(pipeline, tmp_path / name)
    base_models.check_model_name(name, tmp_path)
    assert base_models.locate_pipeline(name, tmp_path) == str(tmp_path / name)
    assert name in base_models.available_models(tmp_path)


def test_a_relative_folder_of_models_gives_an_absolute_path(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loaders take `models/mine` for a repository on the hub; a link is not followed to another name."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models/mine").symlink_to(pipeline)
    monkeypatch.chdir(tmp_path)
    assert base_models.locate_pipeline("mine", Path("models")) == str(tmp_path / "models/mine")


def test_the_command_that_fetches_is_quoted(tmp_path: Path) -> None:
    folder = tmp_path / "my models"
    with pytest.raises(InvalidInput, match=f"--to '{folder}/sd-turbo'"):
        base_models.locate_pipeline("sd-turbo", folder)


def test_the_side_of_a_models_images_is_read_from_its_configs(pipeline: Path, tmp_path: Path) -> None:
    """Without torch or hub, where the folder is here; of published models it is known."""
    put(pipeline, tmp_path / "mine")
    assert base_models.image_side("mine", tmp_path) == 64
    assert base_models.image_side("org/mine", tmp_path) == 64
    assert base_models.image_side("tiny-turbo", tmp_path) == 64
    assert base_models.image_side("sd-turbo", tmp_path) == 512
    assert base_models.image_side("org/other", tmp_path) is None
    (tmp_path / "odd/unet").mkdir(parents=True)
    (tmp_path / "odd/unet/config.json").write_text("[]")
    assert base_models.image_side("odd", tmp_path) is None
