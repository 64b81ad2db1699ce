"""Candidates in this machine's memory: files of a tmpfs, which every process that looks at the same folder can map.

    DIPOLE_CANDIDATE_DIR/dipole-1000/      of user 1000 alone
        id                                 which folder this is: a container with a /dev/shm of its own reads another
        4f….lock                           locked by the process whose images are in 4f…/, for as long as it lives
        4f…/<hash>-24x512x512              the bare pixels of uint8 (24, 512, 512, 3), under the hash of their content

| killed     | what it leaves                        | what becomes of it                                      |
|------------|---------------------------------------|---------------------------------------------------------|
| an owner   | its folder; the kernel frees the lock | `sweep` removes it: the next owner's or a rank worker's |
| one that   | besides, a name that nobody reads: a  | the same                                                |
| writes     | file has its own when it is whole     |                                                         |
| a reader   | nothing: a mapping ends with it, and  |                                                         |
|            | not with the file's name              |                                                         |

Files and not multiprocessing.shared_memory, whose tracker removes what others still need (ADR 18).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import structlog

from dipole.broker.references import Candidates, CandidatesName
from dipole.errors import ConfigurationError
from dipole.protocol.images import pixel_bytes
from dipole.settings import CandidateMemorySettings

log = structlog.get_logger()

_ID = re.compile(r"[0-9a-f]{32}")


class SharedMemory:
    """One folder of candidates. Whoever only reads owns nothing in it; an owner closes it in the end.

    It is made unless `makes_folder` is false. Raises ConfigurationError where there is none, or it is not this user's
    alone. An owner is used by one thread.
    """

    def __init__(self, base: Path, *, makes_folder: bool = True) -> None:
        self._folder = base / f"dipole-{os.getuid()}"
        self._own: Path | None = None
        self._lock = -1
        try:
            self.id = self._open_folder() if makes_folder else self._read_id()
        except OSError as error:
            raise ConfigurationError(
                f"DIPOLE_CANDIDATE_DIR: {self._folder} cannot be used ({error.strerror}): name a folder in memory, or "
                "set DIPOLE_CANDIDATE_STORE=redis"
            ) from error

    def put(self, named: CandidatesName, images: Candidates) -> None:
        """Keep a group's images. Raises OSError where they have no room."""
        path = (self._own or self._claim_folder()) / named.file_name
        if path.exists():
            return
        self._check_room(images.nbytes)
        part, pixels = path.with_suffix(".part"), pixel_bytes(images)
        try:
            with open(part, "wb", buffering=0, opener=_open_privately) as file:
                while pixels:
                    pixels = pixels[file.write(pixels) :]
            part.rename(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise

    def get(self, named: CandidatesName, *, is_writable: bool = False) -> Candidates | None:
        """The images where they lie; None where nobody keeps so many bytes under that name. Read-only, or with
        `is_writable` writable for the caller alone: what is written to is copied then.
        """
        with self._open(named) as file:
            if file is None:
                return None
            if is_writable:
                mapped = mmap.mmap(file, named.nbytes, access=mmap.ACCESS_COPY)
            else:
                # all pages at once: to fault one after the other takes longer
                flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
                mapped = mmap.mmap(file, named.nbytes, flags=flags, prot=mmap.PROT_READ)
        return cast("Candidates", np.frombuffer(mapped, named.dtype).reshape(named.shape))

    def has(self, named: CandidatesName) -> bool:
        with self._open(named) as file:
            return file is not None

    @contextlib.contextmanager
    def _open(self, named: CandidatesName) -> Iterator[int | None]:
        """The descriptor of a file of so many bytes that this user has under that name, whoever keeps it."""
        for owner in _list_names(self._folder):
            try:
                file = os.open(self._folder / owner / named.file_name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                found = os.fstat(file)
                if stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid() and found.st_size == named.nbytes:
                    yield file
                    return
            finally:
                os.close(file)
        yield None

    def delete(self, named: CandidatesName) -> None:
        if self._own is not None:
            (self._own / named.file_name).unlink(missing_ok=True)

    def sweep(self) -> int:
        """Remove what dead owners left; how many there were."""
        swept = 0
        for name in _list_names(self._folder):
            if not name.endswith(".lock"):
                continue
            path = self._folder / name
            with contextlib.suppress(OSError), open(path, "r+b", buffering=0, opener=_open_no_link) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: its owner lives
                if os.fstat(lock.fileno()).st_nlink:  # or another sweeper was faster
                    shutil.rmtree(path.with_suffix(""), ignore_errors=True)
                    path.unlink()
                    swept += 1
        return swept

    def close(self) -> None:
        """Remove what is ours."""
        if self._own is not None:
            shutil.rmtree(self._own, ignore_errors=True)
            self._own.with_suffix(".lock").unlink(missing_ok=True)
            os.close(self._lock)
            self._own = None

    def _open_folder(self) -> str:
        """The folder's id. Whoever comes first makes both."""
        with contextlib.suppress(FileExistsError):
            self._folder.mkdir(mode=0o700)
        self._check_is_private()
        path = self._folder / "id"
        if not path.exists():
            draft = self._folder / f"{uuid.uuid4().hex}.draft"
            draft.write_text(uuid.uuid4().hex)
            with contextlib.suppress(FileExistsError):
                path.hardlink_to(draft)
            draft.unlink()
        return self._read_id()

    def _check_is_private(self) -> None:
        found = self._folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise PermissionError(errno.EPERM, "it is not a folder of this user alone")

    def _read_id(self) -> str:
        self._check_is_private()
        path = self._folder / "id"
        found_id = path.read_text()
        if not _ID.fullmatch(found_id):
            raise OSError(errno.EINVAL, f"{path} is not what was written there")
        return found_id

    def _claim_folder(self) -> Path:
        """A folder of our own, with the lock that tells that we live."""
        self.sweep()
        while self._own is None:
            own = self._folder / uuid.uuid4().hex
            self._lock = os.open(own.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # a sweeper may have come between: it has the lock, or has taken the file away
                if os.fstat(self._lock).st_nlink:
                    own.mkdir(mode=0o700)
                    self._own = own
            except BlockingIOError:
                continue
            finally:
                if self._own is None:
                    os.close(self._lock)
        return self._own

    def _check_room(self, size: int) -> None:
        """Half of the room that is left is for others: /dev/shm is NCCL's and the data loaders' too."""
        found = os.statvfs(self._folder)
        if found.f_blocks and 2 * size > found.f_bavail * found.f_frsize:
            raise OSError(errno.ENOSPC, f"{size} bytes are more than half of the room that is left in {self._folder}")


def open_shared_memory(settings: CandidateMemorySettings) -> SharedMemory | None:
    """The folder for candidates in this machine's memory; None where the settings want none, or leave it open and there
    is none. Raises ConfigurationError where they want one and it cannot be used.
    """
    if settings.candidate_store == "redis":
        return None
    try:
        return SharedMemory(settings.candidate_dir)
    except ConfigurationError as error:
        if settings.candidate_store == "memory":
            raise
        log.info("candidate_memory_unused", error=str(error))
        return None


def find_shared_memory(settings: CandidateMemorySettings) -> SharedMemory | None:
    """The folder as a trainer or a rank worker of this machine has made it, to read from; None where the settings want
    none or there is none by now.
    """
    with contextlib.suppress(ConfigurationError):
        return None if settings.candidate_store == "redis" else SharedMemory(settings.candidate_dir, makes_folder=False)
    return None


def _list_names(folder: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return os.listdir(folder)
    return []


def _open_privately(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
