"""The artifact store: whom its folders are for, and whether there is room for a job."""

from __future__ import annotations

import stat
from pathlib import Path

from dipole_trainer.storage.artifacts import ArtifactStore


def test_the_folders_of_artifacts_and_work_are_their_owners_alone(tmp_path: Path) -> None:
    """Also the home above them, whoever makes it first."""
    store = ArtifactStore(str(tmp_path / "home" / "artifacts"), tmp_path / "home" / "work")
    store.checkout_job("ftjob-1")
    copied = ArtifactStore("memory://private", tmp_path / "elsewhere" / "work")
    copied.checkout_job("ftjob-1")
    made = [path for path in tmp_path.rglob("*") if path.is_dir()]
    assert len(made) == 8
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o700}


def test_there_is_room_for_a_job_that_has_none_yet(tmp_path: Path) -> None:
    """And the look leaves nothing behind."""
    store = ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "work")
    assert store.has_room("ftjob-1")
    assert list((tmp_path / "artifacts" / "jobs" / "ftjob-1").iterdir()) == []


def test_there_is_no_room_where_nothing_can_be_written(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "work")
    (tmp_path / "artifacts" / "jobs").write_text("a file is in the way")
    assert not store.has_room("ftjob-1")
