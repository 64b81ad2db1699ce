"""weights.locate: names become folders on this machine, or a sentence that says what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save_file

from dipole.errors import InvalidInput
from dipole_trainer.weights import local_weights

FILES = ("config.json", "*.safetensors")
COMMIT, OTHER = "a" * 40, "b" * 40


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache of this test's own."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def write_model(folder: Path, *, weights_name: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    save_file({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float16)}, folder / weights_name)
    return folder


def write_snapshot(cache: Path, name: str, commit: str, ref: str = "main") -> Path:
    """A model as the hub's client lays it in its cache."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / ref).write_text(commit)
    return write_model(repository / "snapshots" / commit)


def locate(name: str, models: Path, *, revision: str | None = None, files: Sequence[str] = FILES) -> Path:
    return local_weights.locate_weights(name, models, revision=revision, field="features.weights", files=files)


def refusal(name: str, models: Path, *, revision: str | None = None, files: Sequence[str] = FILES) -> str:
    with pytest.raises(InvalidInput) as caught:
        locate(name, models, revision=revision, files=files)
    assert caught.value.field is not None
    assert str(caught.value).startswith(f"{caught.value.field}: ")
    return str(caught.value)


def test_a_plain_name_is_a_folder_or_a_file_under_models_dir(models: Path) -> None:
    """`name` is models_dir/name; a single file does where one pattern is all that is needed."""
    folder = write_model(models / "vit")
    assert locate("vit", models) == folder
    save_file({"a": np.ones(2, np.float32)}, models / "mae.safetensors")
    assert locate("mae.safetensors", models, files=["*.pth|*.safetensors"]) == models / "mae.safetensors"
    assert "a single file, and a folder with config.json" in refusal("mae.safetensors", models)
    assert "*.pth is missing" in refusal("mae.safetensors", models, files=["*.pth"])


def test_a_hub_id_is_the_folder_that_the_command_fills_or_the_cache(models: Path, cache: Path) -> None:
    """org/name: models_dir/name first, then the snapshot of the cache's main."""
    snapshot = write_snapshot(cache, "org/vit", COMMIT)
    assert locate("org/vit", models) == snapshot
    own = write_model(models / "vit")
    assert locate("org/vit", models) == own


def test_a_revision_is_looked_for_where_revisions_are_known(models: Path, cache: Path) -> None:
    """With a revision the cache comes before the folder, by branch and by commit; a plain name has no revisions."""
    own = write_model(models / "vit")
    older, newer = write_snapshot(cache, "org/vit", COMMIT, "v1"), write_snapshot(cache, "org/vit", OTHER)
    assert locate("org/vit", models, revision="v1") == older
    assert locate("org/vit", models, revision=OTHER) == newer
    assert locate("org/vit", models, revision="v2") == own
    assert "features.revision: 'vit' is not a hub id and has none" in refusal("vit", models, revision="v1")


def test_a_folder_of_another_commit_does_not_serve_a_pinned_job(models: Path) -> None:
    """The commit that `hf download --local-dir` noted must be the one that the job names."""
    notes = write_model(models / "vit") / ".cache/huggingface/download"
    notes.mkdir(parents=True)
    (notes / "config.json.metadata").write_text(f"{COMMIT}\netag\n1.0\n")
    assert locate("org/vit", models, revision=COMMIT) == models / "vit"
    told = refusal("org/vit", models, revision=OTHER)
    assert told.startswith("features.revision: ")
    assert f"holds commit {COMMIT}" in told


def test_what_is_not_here_is_refused_with_the_command_that_fetches_it(models: Path, cache: Path) -> None:
    """The sentence names the path and the cache that were looked at, and a command that can be pasted."""
    told = refusal("org/vit", models, revision="v1")
    assert told.startswith("features.weights: ")
    assert str(models / "vit") in told
    assert str(cache) in told
    assert f"`hf download org/vit --revision v1 --local-dir {models / 'vit'}`" in told
    assert f"`hf download org/vit --local-dir {models / 'vit'}`" in refusal("org/vit", models)
    told = refusal("jiangzhou130v1/drpo-mae-latent-256", models)
    assert f"`dipole models fetch latent-mae --to {models / 'drpo-mae-latent-256'}`" in told
    assert "`dipole models fetch vit-mae " in refusal("facebook/vit-mae-base", models)
    assert "`hf download facebook/vit-mae-base --revision v1 " in refusal(
        "facebook/vit-mae-base", models, revision="v1"
    )
    assert "name a hub id" in refusal("vit", models)


@pytest.mark.parametrize(
    "name",
    ["", "..", "../vit", "/etc", "a/../b", "a/b/c", "org/..", ".hidden", "org/.git", "a\\b", "~", "a\n", "a:b", " a"],
)
def test_a_name_is_never_a_path(models: Path, name: str) -> None:
    """Nothing outside models_dir and the cache can be named, whatever lies there."""
    write_model(models.parent / "vit")
    assert "neither a name under DIPOLE_MODELS_DIR nor a hub id" in refusal(name, models)


@pytest.mark.parametrize("revision", ["../../..", "/etc", "a/../../b", "", "-x", "a\nb", ".."])
def test_a_revision_is_never_a_path(models: Path, cache: Path, revision: str) -> None:
    """The hub's client joins a revision to its cache's path: one that climbs out is refused before."""
    write_snapshot(cache, "org/vit", COMMIT)
    assert "give a branch, a tag or a commit" in refusal("org/vit", models, revision=revision)


def test_an_id_that_the_hub_would_refuse_is_not_found(models: Path) -> None:
    """A repository's name has rules of its own; breaking them is the caller's error, not a traceback."""
    assert "is not on this machine" in refusal("org/a--b", models)


def test_a_missing_file_is_named(models: Path, cache: Path) -> None:
    """In a folder and in a snapshot alike, also when the hub's client knows that the snapshot is partial."""
    (write_model(models / "vit") / "config.json").unlink()
    assert "config.json is missing (in vit there is model.safetensors); put it there" in refusal("vit", models)
    snapshot = write_snapshot(cache, "org/clip", COMMIT)
    (snapshot / "model.safetensors").unlink()
    assert (
        "*.safetensors is missing (in aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa there is config.json); fetch it with `hf"
        in refusal("org/clip", models)
    )
    assert "*.safetensors or *.bin is missing" in refusal("org/clip", models, files=["*.safetensors|*.bin"])
    (snapshot / "model.safetensors").symlink_to("../../blobs/gone")
    assert "*.safetensors is missing" in refusal("org/clip", models)


def test_other_files_of_a_repository_need_not_be_in_the_cache(models: Path, cache: Path) -> None:
    """The hub's client calls a snapshot without its README incomplete; for us it holds what is needed."""
    snapshot = write_snapshot(cache, "org/vit", COMMIT)
    entry = {"size": 2, "blob_id": "0" * 40}
    tree = {"format_version": 1, "files": {"config.json": entry, "README.md": entry}}
    (snapshot.parents[1] / "trees").mkdir()
    (snapshot.parents[1] / "trees" / f"{COMMIT}.json").write_text(json.dumps(tree))
    assert locate("org/vit", models) == snapshot


def test_all_shards_of_an_index_are_there(models: Path) -> None:
    """A missing shard is named; where the whole file lies beside the index, shards are not needed."""
    folder = write_model(models / "vit", weights_name="model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00002-of-00002.safetensors is missing" in refusal("vit", models)
    write_model(folder, weights_name="model-00002-of-00002.safetensors")
    assert locate("vit", models) == folder
    (folder / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    assert "is not an index of shards" in refusal("vit", models)
    write_model(folder)
    assert locate("vit", models) == folder


def test_a_file_that_is_cut_short_or_no_weights_at_all_is_named(models: Path) -> None:
    """A safetensors file's length is in its header; a clone without Git LFS leaves pointers."""
    path = write_model(models / "vit") / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert f"model.safetensors has {len(whole) - 1} of {len(whole)} bytes" in refusal("vit", models)
    for junk in (b"", b"\x08" + bytes(7) + b"[1, 2]  ", b"\xff" * 100, whole[:20]):
        path.write_bytes(junk)
        assert "model.safetensors is not a safetensors file" in refusal("vit", models)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "is a pointer of Git LFS" in refusal("vit", models)
    (models / "mae.pth").write_bytes(b"")
    assert "mae.pth is empty" in refusal("mae.pth", models, files=["*.pth"])


def test_the_api_s_image_can_import_it() -> None:
    """No torch comes with it, nor anything else that the image of the API lacks."""
    heavy = "{'torch', 'safetensors', 'transformers', 'diffusers', 'numpy'} & sys.modules.keys()"
    program = f"import sys; import dipole_trainer.weights.local_weights; print({heavy})"
    answer = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert answer.stdout.strip() == "set()"
