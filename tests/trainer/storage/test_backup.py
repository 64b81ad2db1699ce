"""`dipole backup`, night after night: what takes room, what is deleted, and what a second one may not touch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dipole.cli.operations.backup import LOCK_FILE, restore_backup, write_backup
from dipole.errors import Conflict, InvalidInput
from dipole_trainer.database.engine import upgrade_database

JOB = "artifacts/jobs/j"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a platform with three files, which were written an hour ago."""
    home = tmp_path / "home"
    monkeypatch.setenv("DIPOLE_HOME", str(home))
    upgrade_database(f"sqlite:///{home}/dipole.db")
    for name in ("checkpoint-4/weights", "metrics.jsonl", "pruned"):
        write(home / JOB / name, b"0123456789" * 1000)
    return home


def write(path: Path, data: bytes, *, age_s: float = 3600) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (time.time() - age_s,) * 2)


def back_up(folder: Path, keep: int | None = None) -> Path:
    """The new one; names are seconds."""
    there = set(folder.glob("*Z"))
    while (folder / time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime())) in there:
        time.sleep(0.05)
    write_backup(folder, keep=keep)
    (new,) = set(folder.glob("*Z")) - there
    return new


def test_what_is_as_the_night_before_takes_no_room(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the same file in both; one that was written, even to the same size, is not, and the older backup stays as
    it was. The newer one is whole without the older.
    """
    first = back_up(tmp_path / "backups")
    write(home / JOB / "metrics.jsonl", b"9876543210" * 1000, age_s=1800)
    (home / JOB / "pruned").unlink()
    second = back_up(tmp_path / "backups")
    assert (second / JOB / "checkpoint-4/weights").samefile(first / JOB / "checkpoint-4/weights")
    assert (first / JOB / "metrics.jsonl").read_bytes() == b"0123456789" * 1000
    assert (first / JOB / "pruned").is_file()
    third = back_up(tmp_path / "backups", keep=1)
    assert [path.name for path in sorted((tmp_path / "backups").glob("*Z"))] == [third.name]
    monkeypatch.setenv("DIPOLE_HOME", str(tmp_path / "new"))
    restore_backup(third)
    assert (tmp_path / "new" / JOB / "metrics.jsonl").read_bytes() == b"9876543210" * 1000
    assert (tmp_path / "new" / JOB / "checkpoint-4/weights").read_bytes() == b"0123456789" * 1000
    assert not (tmp_path / "new" / JOB / "pruned").exists()


def test_a_file_that_may_have_changed_within_its_time_is_copied_again(home: Path, tmp_path: Path) -> None:
    """A store may tell in seconds when a file was written."""
    write(home / JOB / "metrics.jsonl", b"young", age_s=0)
    first, second = (back_up(tmp_path / "backups") for _ in range(2))
    assert not (second / JOB / "metrics.jsonl").samefile(first / JOB / "metrics.jsonl")


def test_a_file_system_without_links_has_copies(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    first, second = (back_up(tmp_path / "backups") for _ in range(2))
    ours, theirs = (each / JOB / "checkpoint-4/weights" for each in (first, second))
    assert ours.read_bytes() == theirs.read_bytes()
    assert not ours.samefile(theirs)


def test_what_was_cut_short_goes_and_what_is_being_written_stays(home: Path, tmp_path: Path) -> None:
    """Another process's lock says that it writes; when it is killed, its folder is one that was cut short."""
    backups = tmp_path / "backups"
    backups.mkdir()
    partial = backups / "2026-01-01T00-00-00Z.partial"
    (partial / "artifacts").mkdir(parents=True)
    hold = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(flush=True); time.sleep(99)"
    with subprocess.Popen([sys.executable, "-c", hold, str(backups / LOCK_FILE)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(Conflict, match="another `dipole backup` is writing to"):
            write_backup(backups)
        assert partial.is_dir()
        other.kill()
    made = back_up(backups)
    assert {path.name for path in backups.iterdir()} == {made.name, LOCK_FILE}


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What need not be copied again needs no room either."""
    back_up(tmp_path / "backups")
    usage = shutil.disk_usage(tmp_path)._replace(free=9_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(Conflict, match=r"0\.0 MB free, and 0\.0 MB of artifacts are to be copied there: free room"):
        write_backup(tmp_path / "others")
    assert list((tmp_path / "others").glob("*Z*")) == []
    back_up(tmp_path / "backups")


def test_a_backup_that_was_not_copied_whole_is_not_restored(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither files nor rows of it are brought in."""
    made = back_up(tmp_path / "backups")
    (made / JOB / "checkpoint-4/weights").unlink()
    monkeypatch.setenv("DIPOLE_HOME", str(tmp_path / "new"))
    with pytest.raises(InvalidInput, match=r"has 2 files of 20,000 bytes and not 3 of 30,000: copy the backup"):
        restore_backup(made)
    assert not (tmp_path / "new").exists()
