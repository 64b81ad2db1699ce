"""Candidates in files of a folder in memory: who sees them, who may, and what is left of the dead."""

from __future__ import annotations

import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import redis
from structlog.testing import capture_logs

from dipole.broker.candidates import CandidateStore, MissingCandidates
from dipole.broker.references import CandidatesName, make_reference, parse_reference
from dipole.broker.shared_memory import SharedMemory, open_shared_memory
from dipole.errors import ConfigurationError, InvalidInput
from dipole.settings import PlatformSettings

GROUP = np.arange(2 * 3 * 5 * 3, dtype=np.uint8).reshape(2, 3, 5, 3)
REFERENCE = make_reference(GROUP)
OWNER = """
import sys, time
from pathlib import Path
import numpy as np
from dipole.broker.references import make_reference, parse_reference
from dipole.broker.shared_memory import SharedMemory
group = np.zeros((1, 2, 2, 3), np.uint8)
SharedMemory(Path(sys.argv[1])).put(parse_reference(make_reference(group)), group)
print("kept", flush=True)
time.sleep(60)
"""


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url.removesuffix("/0") + "/11") as client:
        client.flushdb()
        yield client


def files(base: Path) -> set[str]:
    """Names of what lies in the folder, but for its id."""
    return {path.name for path in base.rglob("*")} - {f"dipole-{os.getuid()}", "id"}


def test_images_pass_between_stores_without_redis(client: redis.Redis, tmp_path: Path) -> None:
    """What one puts another gets, bit-equal, read-only and in Redis nowhere; a private file holds the bare pixels."""
    writer = CandidateStore(client, 60, SharedMemory(tmp_path))
    reader = CandidateStore(client, 60, SharedMemory(tmp_path))
    writer.put(REFERENCE, GROUP, to_memory=True)
    found = reader.get(REFERENCE)
    assert np.array_equal(found, GROUP)
    assert not found.flags.writeable
    assert client.keys() == []
    (path,) = (path for path in tmp_path.rglob("*-2x3x5"))
    assert path.read_bytes() == GROUP.tobytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == stat.S_IMODE(path.parent.parent.stat().st_mode) == 0o700
    writer.delete([REFERENCE])
    assert np.array_equal(found, GROUP)  # who looks at it goes on
    with pytest.raises(MissingCandidates):
        reader.get(REFERENCE)
    writer.close()
    assert files(tmp_path) == set()


def test_a_folder_is_told_from_another(tmp_path: Path) -> None:
    """Equal ids are of one folder, however it is reached, and only of one."""
    (tmp_path / "linked").symlink_to(tmp_path)
    (tmp_path / "other").mkdir()
    assert SharedMemory(tmp_path).id == SharedMemory(tmp_path / "linked").id
    assert SharedMemory(tmp_path).id != SharedMemory(tmp_path / "other").id


@pytest.mark.parametrize("spoil", [lambda folder: folder.mkdir(mode=0o755), lambda folder: folder.symlink_to("/tmp")])
def test_a_folder_that_others_may_enter_is_not_used(spoil: object, tmp_path: Path) -> None:
    """Whoever made it first may read or replace what lies there. `auto` does without, `memory` says so."""
    spoil(tmp_path / f"dipole-{os.getuid()}")  # type: ignore[operator]
    assert open_shared_memory(PlatformSettings(candidate_dir=tmp_path)) is None
    with pytest.raises(ConfigurationError, match=r"DIPOLE_CANDIDATE_DIR.*this user alone"):
        open_shared_memory(PlatformSettings(candidate_dir=tmp_path, candidate_store="memory"))
    assert open_shared_memory(PlatformSettings(candidate_dir=tmp_path / "none")) is None


def test_what_has_no_room_goes_to_redis_with_one_warning(client: redis.Redis, tmp_path: Path) -> None:
    """The system refuses to write so much: every group is in Redis, nothing half-written stays, and it is said once."""
    store = CandidateStore(client, 60, SharedMemory(tmp_path))
    groups = [np.full((2, 64, 64, 3), value, np.uint8) for value in range(3)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with capture_logs() as logs:
            for group in groups:
                store.put(make_reference(group), group, to_memory=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [each["event"] for each in logs] == ["candidate_memory_full"]
    for group in groups:
        assert np.array_equal(store.get(make_reference(group)), group)
    assert len(client.keys("dipole:candidates:*")) == 3
    assert not list(tmp_path.rglob("*-2x64x64*"))
    store.put(REFERENCE, GROUP, to_memory=True)  # what has room again is in memory again
    assert len(client.keys("dipole:candidates:*")) == 3
    store.close()


def test_a_sweep_takes_what_the_dead_left_and_nothing_of_the_living(tmp_path: Path) -> None:
    """Two owners, one killed: its folder goes, the other's stays, until that one is dead too."""
    owners = [
        subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        for owner in owners:
            assert owner.stdout is not None
            assert owner.stdout.readline() == "kept\n"
        memory, theirs = SharedMemory(tmp_path), parse_reference(make_reference(np.zeros((1, 2, 2, 3), np.uint8)))
        assert memory.sweep() == 0
        os.kill(owners[0].pid, signal.SIGKILL)
        owners[0].wait()
        assert memory.sweep() == 1
        assert memory.has(theirs)
        os.kill(owners[1].pid, signal.SIGKILL)
        owners[1].wait()
        memory.put(parse_reference(REFERENCE), GROUP)  # whoever begins to own sweeps
        assert not memory.has(theirs)
        assert memory.sweep() == 0
        assert memory.has(parse_reference(REFERENCE))
        memory.close()
        assert files(tmp_path) == set()
    finally:
        for owner in owners:
            owner.kill()
            owner.wait()
            owner.stdout.close()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "reference",
    [
        "sha256:../../id:1x1x1",
        f"sha256:{'0' * 64}:/etc/passwd",
        f"sha256:{'0' * 64}:99999x99999x99999",
        f"sha256:{'0' * 64}:0x8x8",
        "",
    ],
)
def test_a_reference_names_no_path_and_no_memory_without_bounds(
    reference: str, client: redis.Redis, tmp_path: Path
) -> None:
    """Whoever writes to Redis names neither a file elsewhere nor more bytes than a request may have."""
    with pytest.raises(InvalidInput, match="names no group's images"):
        CandidateStore(client, 60, SharedMemory(tmp_path)).get(reference)


def test_a_file_of_other_bytes_is_not_read(client: redis.Redis, tmp_path: Path) -> None:
    """Fewer bytes than the reference says are no group, and a link is none."""
    memory = SharedMemory(tmp_path)
    whole, one = parse_reference(REFERENCE), CandidatesName(GROUP[:1].shape, GROUP.dtype, "0" * 64)
    memory.put(whole, GROUP[:1])
    assert memory.get(whole) is None
    (short,) = tmp_path.rglob(whole.file_name)
    short.rename(short.with_name("elsewhere")).with_name(one.file_name).symlink_to("elsewhere")
    assert memory.get(one) is None
    memory.close()
