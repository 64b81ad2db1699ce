"""`dipole models fetch` as a user types it, from a hub to a generator that draws."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from dipole.downloads.table import read_table
from dipole_trainer.generators import build_generator, tiny_pipelines
from dipole_trainer.spec import GeneratorSpec
from dipole_trainer.weights import base_models

from ...fake_hub import FakeHub, run_dipole, running_hub, write_table

REPOSITORY = "stabilityai/sd-turbo"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline, with what else lies in the real repository and nobody needs."""
    folder = tiny_pipelines.write_pipeline(tmp_path_factory.mktemp("published") / "sd-turbo", "sd")
    shutil.copy(folder / "unet/config.json", folder / "sd_turbo.safetensors")
    shutil.copy(
        folder / "unet/diffusion_pytorch_model.safetensors", folder / "unet/diffusion_pytorch_model.fp16.safetensors"
    )
    return folder


@pytest.fixture
def hub(published: Path) -> Iterator[FakeHub]:
    with running_hub() as hub:
        hub.repositories[REPOSITORY] = published
        yield hub


def test_sd_turbo_is_fetched_and_draws(hub: FakeHub, tmp_path: Path) -> None:
    """The path is printed alone; the job's name finds it, a job that pins the table's commit too; nothing unneeded."""
    done = run_dipole(hub, "models", "fetch", "sd-turbo", cwd=tmp_path)
    folder = tmp_path / ".dipole/models/sd-turbo"
    assert (done.returncode, done.stdout) == (0, f"{folder}\n"), done.stderr
    commit = read_table().sources[REPOSITORY].revision
    assert f"{REPOSITORY} at {commit}. Licence: Stability AI" in done.stderr
    assert not [name for name in hub.fetched() if "fp16" in name or name == "sd_turbo.safetensors"]
    assert base_models.locate_pipeline(REPOSITORY, folder.parent, commit) == str(folder)
    generator = build_generator(GeneratorSpec(model="sd-turbo"), models_dir=folder.parent)
    assert generator(generator.draw_noise([7]), "a red square").isfinite().all()
    again = run_dipole(hub, "models", "fetch", "sd-turbo", cwd=tmp_path)
    assert "nothing to fetch" in again.stderr


def test_the_list_says_what_is_here_and_what_brings_the_rest(hub: FakeHub, tmp_path: Path) -> None:
    """Missing, half there after a broken download, and there."""

    def state() -> tuple[str, str | None]:
        listed = run_dipole(hub, "models", "list", "--json", cwd=tmp_path).stdout.splitlines()
        (found,) = [each for each in map(json.loads, listed) if each.get("name") == "sd-turbo"]
        return found["state"], found["command"]

    fetch = partial(run_dipole, hub, "models", "fetch", "sd-turbo", cwd=tmp_path)
    assert state() == ("missing", "dipole models fetch sd-turbo")
    assert "dipole models fetch latent-mae" in run_dipole(hub, "models", "list", cwd=tmp_path).stdout
    hub.damaged.add("diffusion_pytorch_model.safetensors")
    failed = fetch()
    assert failed.returncode == 1
    assert "is not what was published" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert state() == ("incomplete", "dipole models fetch sd-turbo")
    hub.damaged.clear()
    assert fetch().returncode == 0
    assert state() == ("here", None)


def test_a_disk_that_fills_up_is_a_sentence_and_the_next_run_goes_on(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written is kept. A limit on the size of files stands for the disk's."""
    size = (hub.repositories[REPOSITORY] / "unet/diffusion_pytorch_model.safetensors").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, before[1]))
    try:
        failed = run_dipole(hub, "models", "fetch", "sd-turbo", cwd=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert failed.returncode == 1
    assert "is full: diffusion_pytorch_model.safetensors.part is kept" in failed.stderr
    done = run_dipole(hub, "models", "fetch", "sd-turbo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert hub.ranges("unet/diffusion_pytorch_model.safetensors") == [None, f"bytes={size // 2}-"]


def test_without_a_network_a_folder_serves(hub: FakeHub, published: Path, tmp_path: Path) -> None:
    """`--from`, with the hub forbidden; without it the sentence names it."""
    offline = {"HF_HUB_OFFLINE": "1"}
    refused = run_dipole(hub, "models", "fetch", "sd-turbo", cwd=tmp_path, **offline)
    assert refused.returncode == 1
    assert "give a folder with --from" in refused.stderr
    done = run_dipole(
        hub, "models", "fetch", "sd-turbo", "--from", str(published.parent), "--to", "here", cwd=tmp_path, **offline
    )
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'here'}\n"), done.stderr
    assert hub.asked == []
    (tmp_path / "models").mkdir()
    (tmp_path / "here").rename(tmp_path / "models/sd-turbo")
    assert base_models.locate_pipeline("sd-turbo", tmp_path / "models")


def test_features_come_from_where_they_are_published(hub: FakeHub, tmp_path: Path) -> None:
    """The latent MAE from a plain address; with its known checksum in the table, another file is thrown away."""
    hub.files["mae_latent_256_torch.pth"] = tmp_path / "published.pth"
    (tmp_path / "published.pth").write_bytes(b"weights" * 1000)
    table = write_table(hub, tmp_path / "table.toml")
    fetch = partial(run_dipole, hub, "models", "fetch", "latent-mae", cwd=tmp_path, DIPOLE_WEIGHTS_TABLE=str(table))
    done = fetch()
    assert done.returncode == 0, done.stderr
    assert "Not compared with any published checksum: mae_latent_256_torch.pth" in done.stderr
    found = tmp_path / ".dipole/models/drpo-mae-latent-256/mae_latent_256_torch.pth"
    assert found.read_bytes() == b"weights" * 1000
    found.unlink()
    known = read_table().sources["jiangzhou130v1/drpo-mae-latent-256"].sha256["mae_latent_256_torch.pth"]
    text = table.read_text().replace(
        '[sources."jiangzhou130v1/drpo-mae-latent-256"]',
        f'[sources."jiangzhou130v1/drpo-mae-latent-256"]\nsha256 = {{ "mae_latent_256_torch.pth" = "{known}" }}',
    )
    table.write_text(text)
    assert "is not what was published" in fetch().stderr
    assert not found.exists()
