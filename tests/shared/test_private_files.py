"""What the platform writes for its owner alone."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from dipole.private_files import hide_from_others, make_private_file, make_private_folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_every_folder_that_is_made_is_the_owners_alone_and_no_other_is_touched(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    make_private_folder(tmp_path / "theirs" / "a" / "b")
    make_private_folder(tmp_path / "theirs" / "a" / "b")
    assert [mode(tmp_path / name) for name in ("theirs", "theirs/a", "theirs/a/b")] == [0o755, 0o700, 0o700]


def test_a_file_is_made_private_and_an_older_one_is_hidden_with_what_it_holds(tmp_path: Path) -> None:
    new, old = tmp_path / "folder" / "new", tmp_path / "old"
    old.write_text("kept")
    make_private_file(new)
    make_private_file(old)
    assert (mode(new), mode(old), old.read_text()) == (0o600, 0o600, "kept")


def test_hiding_what_is_not_there_is_nothing(tmp_path: Path) -> None:
    hide_from_others(tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []
