"""Without a network: a folder that has the files serves, in each layout that people have them in."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from dipole.downloads.fetch import FetchedWeights, fetch_weights
from dipole.downloads.local_folder import FolderOrigin
from dipole.downloads.table import WeightsTable
from dipole.errors import DownloadError

from .conftest import SilentReport

HEAD = b"a head" * 100


def make_table(**sources: Any) -> WeightsTable:
    """`judge` has files of two sources, one of them in a folder inside."""
    parts = [
        {"source": "org/tiny", "files": ["config.json", "unet/*"], "into": "clip"},
        {"source": "head", "files": ["head.pth"]},
    ]
    found = {"org/tiny": {}, "head": {"url": "https://nowhere.invalid/{file}"}, **sources}
    return WeightsTable.model_validate({"sources": found, "rewards": {"judge": {"parts": parts}}})


def write_repository(folder: Path) -> None:
    (folder / "unet").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "unet/model.safetensors").write_bytes(b"weights" * 1000)


def bring(given: Path, target: Path, table: WeightsTable | None = None) -> FetchedWeights:
    table = table or make_table()
    origin = FolderOrigin(table, given, target.name)
    return fetch_weights(table.rewards["judge"], target, origin=origin, progress=SilentReport())


@pytest.mark.parametrize(
    ("repository", "head"),
    [
        ("clip", "head.pth"),
        ("judge/clip", "judge/head.pth"),
        ("org/tiny", "head/head.pth"),
        ("tiny", "head.pth"),
        (".", "head.pth"),
        ("models--org--tiny/snapshots/abc", "head.pth"),
    ],
)
def test_a_folder_serves_in_every_layout(tmp_path: Path, repository: str, head: str) -> None:
    """A copy of ours, of all of ours, clones by name, files side by side, a cache of the hub."""
    given, target = tmp_path / "given", tmp_path / "weights/judge"
    write_repository(given / repository)
    (given / head).parent.mkdir(parents=True, exist_ok=True)
    (given / head).write_bytes(HEAD)
    done = bring(given, target)
    assert sorted(done.fetched) == ["clip/config.json", "clip/unet/model.safetensors", "head.pth"]
    assert done.unchecked == ["clip/config.json", "clip/unet/model.safetensors", "head.pth"]
    assert (target / "clip/unet/model.safetensors").read_bytes() == b"weights" * 1000
    assert (target / "head.pth").read_bytes() == HEAD
    assert bring(given, target).fetched == []


def test_what_the_folder_lacks_is_named_with_the_places(tmp_path: Path) -> None:
    """And nothing is written."""
    write_repository(tmp_path / "given")
    (tmp_path / "given/config.json").unlink()
    with pytest.raises(DownloadError, match=r"does not have config\.json, unet/\* of org/tiny: .* judge, org/tiny and"):
        bring(tmp_path / "given", tmp_path / "judge")
    assert not (tmp_path / "judge").exists()


def test_a_known_checksum_holds_for_a_folder_too(tmp_path: Path) -> None:
    """The file is named; a right one is taken after it."""
    given, target = tmp_path / "given", tmp_path / "judge"
    write_repository(given)
    (given / "head.pth").write_bytes(b"altered" * 100)
    table = make_table(
        head={"url": "https://nowhere.invalid/{file}", "sha256": {"head.pth": hashlib.sha256(HEAD).hexdigest()}}
    )
    with pytest.raises(DownloadError, match=r"given/head\.pth is not what was published"):
        bring(given, target, table)
    assert not (target / "head.pth").exists()
    (given / "head.pth").write_bytes(HEAD)
    assert bring(given, target, table).fetched == ["head.pth"]


def test_what_a_broken_download_left_is_not_mixed_in(tmp_path: Path) -> None:
    """A copy begins anew."""
    given, target = tmp_path / "given", tmp_path / "judge"
    write_repository(given)
    (given / "head.pth").write_bytes(HEAD)
    target.mkdir()
    (target / "head.pth.part").write_bytes(b"half of another")
    bring(given, target)
    assert (target / "head.pth").read_bytes() == HEAD
    assert not (target / "head.pth.part").exists()


def test_a_folder_may_be_filled_from_itself(tmp_path: Path) -> None:
    """All is there: nothing is copied."""
    write_repository(tmp_path / "judge/clip")
    (tmp_path / "judge/head.pth").write_bytes(HEAD)
    shutil.copytree(tmp_path / "judge", tmp_path / "before")
    assert bring(tmp_path / "judge", tmp_path / "judge").fetched == []
