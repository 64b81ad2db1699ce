"""Artifacts in an object store, over HTTP to a real S3 server: what is written there, and what is said of a store that
is slow, away, full or not there.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.registry import _registry as KNOWN_CLIENTS

from dipole.cli.operations.backup import restore_backup, write_backup
from dipole.errors import ConfigurationError, DependencyUnavailable, NotFound
from dipole_trainer.database.engine import upgrade_database
from dipole_trainer.storage import copied_files, store_client
from dipole_trainer.storage.artifacts import ArtifactStore

from ...s3_server import FULL, S3Server, running_s3

QUOTAS = [
    FULL,
    (400, "XMinioAdminBucketQuotaExceeded", "Bucket quota exceeded"),
    (403, "QuotaExceeded", "Quota exceeded"),
    (507, "InsufficientStorage", "No space"),
    (507, "Unheard", "Something else"),
]


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with running_s3(monkeypatch) as server:
        yield server


@pytest.fixture
def store(s3: S3Server, tmp_path: Path) -> ArtifactStore:
    return ArtifactStore("s3://artifacts/dipole", tmp_path / "work")


def write(store: ArtifactStore, path: str, data: bytes, folder: Path) -> None:
    (folder / "file").write_bytes(data)
    store.write_file(path, folder / "file")


def test_files_are_written_listed_read_and_deleted(store: ArtifactStore, tmp_path: Path) -> None:
    data = bytes(range(256)) * 40_000  # more than is read at once
    write(store, "jobs/j/samples/step-1.png", data, tmp_path)
    store.copy_file("jobs/j/samples/step-1.png", "jobs/j/initial/0/weights")
    assert [(each.path, each.bytes) for each in store.list_files("jobs/j")] == [
        ("initial/0/weights", len(data)), ("samples/step-1.png", len(data)),
    ]  # fmt: skip
    assert store.file_size("jobs/j/initial/0/weights") == len(data)
    with store.open_file("jobs/j/samples/step-1.png") as file:
        assert file.read() == data
        file.seek(-300, 2)  # as a reader of a recording does, for a part of it
        assert file.read(44) == data[-300:-256]
    with store.local_path("jobs/j/initial") as folder:
        assert (folder / "0" / "weights").read_bytes() == data
    store.delete_file("jobs/j/samples/step-1.png")
    store.delete_folder("jobs/j/initial")
    assert store.list_files("jobs/j") == []
    for absent in ("jobs/j/samples/step-1.png", "jobs/j"):
        with pytest.raises(NotFound), store.open_file(absent):
            pass


def test_what_lies_in_it_is_a_file_to_those_alone_who_name_it(store: ArtifactStore, tmp_path: Path) -> None:
    write(store, "files/a.jsonl", b"{}\n", tmp_path)
    assert store.list_files("files/a.jsonl") == []
    with store.local_path("files/a.jsonl") as path:
        assert path.read_bytes() == b"{}\n"


OPERATIONS: dict[str, Callable[[ArtifactStore, Path], Any]] = {
    "read": lambda store, folder: store.open_file("files/a.jsonl").__enter__(),
    "size": lambda store, folder: store.file_size("files/a.jsonl"),
    "list": lambda store, folder: store.list_files("files"),
    "write": lambda store, folder: write(store, "files/b.jsonl", b"{}", folder),
    "delete": lambda store, folder: store.delete_file("files/a.jsonl"),
    "copy": lambda store, folder: store.copy_file("files/a.jsonl", "files/c.jsonl"),
    "check out": lambda store, folder: store.checkout_job("ftjob-1"),
    "back up": lambda store, folder: list(store.copy_out(folder / "backup")),
}


def test_a_store_that_is_away_is_never_a_file_that_is_missing(
    s3: S3Server, store: ArtifactStore, tmp_path: Path
) -> None:
    """Of one that did not answer, fsspec said that there is no such file: a caller's 404, and a job without its
    checkpoints.
    """
    write(store, "files/a.jsonl", b"{}\n", tmp_path)
    with s3.away():
        for name, operation in OPERATIONS.items():
            with pytest.raises(DependencyUnavailable, match=r"store \(DIPOLE_ARTIFACTS_URL\) does not answer"):
                pytest.fail(f"{name}: {operation(store, tmp_path)}")
        assert not store.has_room("ftjob-1")
    assert store.has_room("ftjob-1")
    with store.open_file("files/a.jsonl") as file:
        assert file.read() == b"{}\n"


def test_a_store_that_goes_away_while_it_is_read_is_named(s3: S3Server, store: ArtifactStore, tmp_path: Path) -> None:
    write(store, "files/a.jsonl", bytes(3 * store_client.READ_BYTES), tmp_path)
    with store.open_file("files/a.jsonl") as file:
        assert len(file.read(1000)) == 1000
        with s3.away(), pytest.raises(DependencyUnavailable, match="does not answer"):
            file.read()
        assert not any(file.read())


def test_a_bucket_that_is_missing_is_named_and_not_made(s3: S3Server, tmp_path: Path) -> None:
    store = ArtifactStore("s3://misspelt/dipole", tmp_path / "work")
    for name, operation in OPERATIONS.items():
        with pytest.raises(DependencyUnavailable, match=r"has no such bucket"):
            pytest.fail(f"{name}: {operation(store, tmp_path)}")
    assert not store.has_room("ftjob-1")
    assert "PUT /misspelt" not in s3.requests


@pytest.mark.parametrize("full", QUOTAS, ids=lambda full: full[1])
def test_a_store_that_is_full_still_reads(
    s3: S3Server, store: ArtifactStore, tmp_path: Path, full: tuple[int, str, str]
) -> None:
    write(store, "files/a.jsonl", b"{}\n", tmp_path)
    s3.full = full
    with pytest.raises(DependencyUnavailable, match=r"is full: .*" + full[2]):
        write(store, "files/a.jsonl", b"longer than before", tmp_path)
    assert not store.has_room("ftjob-1"), "it was asked whether it can be read, and it can"
    with store.open_file("files/a.jsonl") as file:
        assert file.read() == b"{}\n", "what was there stays"


LARGE = 100 * 2**20  # from here on s3fs sends parts of 50 MiB


@pytest.fixture
def large_file(tmp_path: Path) -> Path:
    """Three parts, whose bytes tell where they belong; most of it are holes."""
    path = tmp_path / "large"
    with path.open("wb") as file:
        for offset in (0, LARGE // 2, LARGE):
            file.seek(offset)
            file.write(offset.to_bytes(8))
    return path


def list_uploads() -> list[Any]:
    """Uploads that were begun and neither completed nor aborted."""
    told = fsspec.filesystem("s3").call_s3("list_multipart_uploads", Bucket="artifacts")
    return list(told.get("Uploads", []))


def test_a_large_file_goes_up_in_parts_and_comes_down_whole(
    s3: S3Server, store: ArtifactStore, large_file: Path
) -> None:
    """Two parts at a time, so that an API of 1 GiB can store two large files at once."""
    s3.delay_s = 0.2
    store.write_file("jobs/j/checkpoint-1/weights", large_file)
    assert s3.most_at_once == store_client.PARTS_AT_ONCE
    s3.delay_s = 0
    assert [each.partition(" ")[0] for each in s3.requests if each.endswith("/weights")].count("PUT") == 3
    assert store.file_size("jobs/j/checkpoint-1/weights") == LARGE + 8
    with store.open_file("jobs/j/checkpoint-1/weights") as file:
        for offset in (0, LARGE // 2, LARGE):
            file.seek(offset)
            assert int.from_bytes(file.read(8)) == offset
    assert list_uploads() == []


@pytest.mark.parametrize(
    ("refused", "answer", "sentence"),
    [
        (r"^PUT .*partNumber=2", FULL, r"is full: .*minimum free drive"),
        (r"^POST .*uploadId=", FULL, r"is full: .*minimum free drive"),
        (r"^POST .*uploadId=", (403, "AccessDenied", "Access Denied"), "refuses us: Access Denied"),
        (r"^POST .*uploads", (403, "AccessDenied", "Access Denied"), "refuses us: Access Denied"),
    ],
    ids=["second part", "completion", "completion refused", "beginning refused"],
)
def test_a_large_file_that_fails_on_its_way_is_not_there(
    s3: S3Server,
    store: ArtifactStore,
    large_file: Path,
    tmp_path: Path,
    refused: str,
    answer: tuple[int, str, str],
    sentence: str,
) -> None:
    """What was there before stays; the upload is aborted, so that its parts take no room."""
    write(store, "jobs/j/weights", b"before", tmp_path)
    s3.full, s3.refused = answer, re.compile(refused)
    with pytest.raises(DependencyUnavailable, match=sentence):
        store.write_file("jobs/j/weights", large_file)
    s3.full = None
    assert [(each.path, each.bytes) for each in store.list_files("jobs/j")] == [("weights", len(b"before"))]
    assert list_uploads() == []
    assert ("DELETE /artifacts/dipole/jobs/j/weights" in s3.requests) == ("uploads" not in refused)


def test_an_upload_that_cannot_be_aborted_is_no_file_either(
    s3: S3Server, store: ArtifactStore, large_file: Path
) -> None:
    """Its parts stay for the bucket's rule."""
    s3.full, s3.refused = FULL, re.compile(r"partNumber=2|^DELETE ")
    with pytest.raises(DependencyUnavailable, match="is full"):
        store.write_file("jobs/j/weights", large_file)
    s3.full = None
    assert store.list_files("jobs") == []
    assert len(list_uploads()) == 1


def test_a_store_may_be_slow_and_one_that_hangs_is_given_up(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_client, "READ_TIMEOUT_S", 1)
    store = ArtifactStore("s3://artifacts/slow", tmp_path / "work")
    s3.delay_s = 0.1
    write(store, "files/a.jsonl", b"{}\n", tmp_path)
    assert [each.path for each in store.list_files("files")] == ["a.jsonl"]
    s3.delay_s = 0
    s3.requests.clear()
    with s3.hanging(), pytest.raises(DependencyUnavailable, match="does not answer"):
        store.file_size("files/a.jsonl")
    assert len(s3.requests) == 2, "a request is tried as often as s3fs says, and not five times that"
    assert store.file_size("files/a.jsonl") == 3


def test_a_client_that_is_not_installed_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(KNOWN_CLIENTS, "s3", raising=False)
    with pytest.raises(ConfigurationError, match=r"'\.\[s3\]'"):
        ArtifactStore("s3://artifacts/dipole", tmp_path)


def test_what_a_bucket_has_as_before_is_not_read_again(
    s3: S3Server, store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second copy links what has the time and the size of the first, and reads what was written since."""
    monkeypatch.setattr(copied_files, "SETTLED_NS", 0)
    for name in ("kept", "written"):
        write(store, f"jobs/j/{name}", b"same", tmp_path)
    first, second = tmp_path / "1", tmp_path / "2"
    assert len(list(store.copy_out(first))) == 2
    time.sleep(1.1)  # S3 tells seconds
    write(store, "jobs/j/written", b"anew", tmp_path)
    assert store.measure_copy(first) == len(b"anew")
    s3.requests.clear()
    list(store.copy_out(second, first))
    assert [each for each in s3.requests if each.startswith("GET") and "/jobs/" in each] == [
        "GET /artifacts/dipole/jobs/j/written"
    ]
    assert (second / "jobs/j/kept").samefile(first / "jobs/j/kept")
    assert [(folder / "jobs/j/written").read_bytes() for folder in (first, second)] == [b"same", b"anew"]


def test_a_platform_goes_to_a_bucket_and_back_by_backup_and_restore(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`dipole backup` of a bucket, `dipole restore` into another place in it; a backup of one that is away is none."""
    monkeypatch.setenv("DIPOLE_HOME", str(tmp_path / "old"))
    monkeypatch.setenv("DIPOLE_ARTIFACTS_URL", "s3://artifacts/old")
    upgrade_database(f"sqlite:///{tmp_path}/old/dipole.db")
    write(ArtifactStore("s3://artifacts/old", tmp_path / "work"), "jobs/j/checkpoint-1/complete", b"mark", tmp_path)
    with s3.away(), pytest.raises(DependencyUnavailable, match="does not answer"):
        write_backup(tmp_path / "none")
    assert list((tmp_path / "none").glob("*Z*")) == []
    write_backup(tmp_path / "backups")
    monkeypatch.setenv("DIPOLE_HOME", str(tmp_path / "new"))
    monkeypatch.setenv("DIPOLE_ARTIFACTS_URL", "s3://artifacts/new")
    restore_backup(tmp_path / "backups")
    with ArtifactStore("s3://artifacts/new", tmp_path / "work").open_file("jobs/j/checkpoint-1/complete") as file:
        assert file.read() == b"mark"
