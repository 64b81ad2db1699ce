"""Where files are kept: uploads, checkpoints, samples, exports, under DIPOLE_ARTIFACTS_URL.

What lies where is job_layout.py's to say.

A plain folder (the default) is the working folder itself: nothing is copied. Any other fsspec URL (s3://bucket/path)
gets a copy at each checkpoint, and a worker that takes a job over fetches the whole ones first. Callers name files by
relative paths; anything that could lead elsewhere is refused before a file system sees it.

Whatever the store's client raises becomes DependencyUnavailable (store_client.py): it is away, or full.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import stamina
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from dipole.errors import DependencyUnavailable, InvalidInput, NotFound
from dipole.private_files import make_private_folder
from dipole_trainer.spec import TrainSpec
from dipole_trainer.storage import job_layout
from dipole_trainer.storage.copied_files import ListedFile, link_copy
from dipole_trainer.storage.job_layout import (
    CANDIDATES_FOLDER,
    COMPLETE_MARK,
    INITIAL_FOLDER,
    checkpoint_name,
    step_of_checkpoint,
)
from dipole_trainer.storage.store_client import find_info, open_reader, open_store, store_errors

PROBE_BYTES = 2**20
_SAFE_PATH = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


@dataclass(frozen=True)
class Artifact:
    """A stored file; `path` is relative to its job."""

    path: str
    bytes: int


def check_safe_path(path: str) -> str:
    """The path, if it is plain names joined by slashes (none begins with a dot). Raises NotFound otherwise."""
    if len(path) > 1024 or not _SAFE_PATH.fullmatch(path):
        raise NotFound("there is no such file")
    return path


class ArtifactStore:
    """The store behind one fsspec URL."""

    def __init__(self, url: str, scratch: Path) -> None:
        """`scratch` holds working folders when the store is not a plain folder."""
        fs, root = open_store(url)
        self.folder = Path(root).resolve() if isinstance(fs, LocalFileSystem) else None
        if self.folder is not None:
            make_private_folder(self.folder)
        self._fs: Any = DirFileSystem(path=str(self.folder or root), fs=fs)
        self._has_folders = not isinstance(fs, AsyncFileSystem)  # an object store has none
        self._scratch = scratch
        self._sent: dict[Path, tuple[int, int]] = {}  # files that sync has sent, and what they were then

    # ---- files by path ------------------------------------------------------------------------------------------

    def write_file(self, path: str, source: Path) -> None:
        """Store a finished local file, whole or not at all."""
        check_safe_path(path)
        with store_errors(), self._whole_file(path):
            self._fs.put_file(str(source), path)

    def copy_file(self, source: str, target: str) -> None:
        """Copy a stored file within the store, whole or not at all. Raises NotFound."""
        for path in (source, target):
            check_safe_path(path)
        with store_errors():
            self._stat_file(source)
            with self._whole_file(target):
                try:
                    self._fs.cp_file(source, target)
                except FileNotFoundError as error:  # it was pruned a moment ago
                    raise NotFound("there is no such file") from error

    @contextmanager
    def _whole_file(self, path: str) -> Iterator[None]:
        """Make the file's folder, and leave no part of it where writing it fails. An object store needs neither: it
        keeps what is whole, and s3fs would make a bucket that is missing.
        """
        if not self._has_folders:
            yield
            return
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        try:
            yield
        except Exception:
            with suppress(Exception):
                self._fs.rm_file(path)
            raise

    def _stat_file(self, path: str) -> dict[str, Any]:
        """What the store knows of a file. Raises NotFound, also for a link that leads out of the store."""
        if self.folder is not None and not (self.folder / path).resolve().is_relative_to(self.folder):
            raise NotFound("there is no such file")
        found = find_info(self._fs, path)
        if found is None or found["type"] != "file":
            raise NotFound("there is no such file")
        return found

    def delete_folder(self, path: str) -> None:
        check_safe_path(path)
        with store_errors():
            if find_info(self._fs, path) is not None:
                self._fs.rm(path, recursive=True)

    def delete_file(self, path: str) -> None:
        check_safe_path(path)
        with store_errors():
            if find_info(self._fs, path) is not None:
                self._fs.rm_file(path)

    @contextmanager
    def open_file(self, path: str) -> Iterator[BinaryIO]:
        """A stored file for reading. Raises NotFound, also for a link that leads out of the store."""
        check_safe_path(path)
        with store_errors():
            self._stat_file(path)
            opened = open_reader(self._fs, path)
        with opened as file:
            yield file

    def file_size(self, path: str) -> int:
        check_safe_path(path)
        with store_errors():
            return int(self._stat_file(path)["size"])

    def list_files(self, folder: str) -> list[Artifact]:
        """Every file below a folder, by path relative to it; hidden and partial ones left out."""
        prefix = check_safe_path(folder) + "/"
        with store_errors():
            info = find_info(self._fs, folder)
            found = self._fs.find(folder, detail=True) if info and info["type"] == "directory" else {}
        names = ((str(path).removeprefix(prefix), int(info["size"] or 0)) for path, info in found.items())
        return sorted(
            (Artifact(name, size) for name, size in names if _SAFE_PATH.fullmatch(name)),
            key=lambda artifact: artifact.path,
        )

    def copy_out(self, target: Path, earlier: Path | None = None) -> Iterator[Path]:
        """Copy every stored file to below a local folder, each as it is copied. Hidden and partial ones are left out,
        and what is pruned meanwhile. What is in `earlier` as it is in the store becomes a link to that copy.
        """
        target.mkdir(mode=0o700)
        with store_errors():
            for file in self._list_stored():
                copy = target / file.path
                copy.parent.mkdir(parents=True, exist_ok=True)
                if not (earlier and file.equals_copy(earlier / file.path) and link_copy(earlier / file.path, copy)):
                    try:
                        self._fs.get_file(file.path, str(copy))
                    except FileNotFoundError:
                        copy.unlink(missing_ok=True)
                        continue
                    file.stamp_copy(copy)
                yield copy

    def measure_copy(self, earlier: Path | None = None) -> int:
        """Bytes that `copy_out` would write, if it can link what is in `earlier`."""
        with store_errors():
            files = self._list_stored()
        return sum(file.size for file in files if not (earlier and file.equals_copy(earlier / file.path)))

    def _list_stored(self) -> list[ListedFile]:
        found = self._fs.find("", detail=True)
        return [ListedFile.of(path, found[path]) for path in sorted(found) if _SAFE_PATH.fullmatch(path)]

    def copy_in(self, source: Path) -> Iterator[Path]:
        """The other way round: store every file below a local folder, each as it is stored."""
        for path in sorted(path for path in source.rglob("*") if path.is_file()):
            self.write_file(path.relative_to(source).as_posix(), path)
            yield path

    @contextmanager
    def local_path(self, path: str) -> Iterator[Path]:
        """A stored file or folder as a path on this machine, to be read while the context lasts. Raises NotFound."""
        if self.folder is not None:
            found = (self.folder / check_safe_path(path)).resolve()
            if not found.is_relative_to(self.folder) or not found.exists():
                raise NotFound("there is no such file")
            yield found
            return
        check_safe_path(path)
        with ExitStack() as stack:
            with store_errors():
                info = find_info(self._fs, path)
                if info is None:
                    raise NotFound("there is no such file")
                make_private_folder(self._scratch)
                copy = stack.enter_context(tempfile.TemporaryDirectory(prefix="data-", dir=self._scratch))
                target = Path(copy) / path.rpartition("/")[2]
                if info["type"] == "file":
                    self._fs.get_file(path, str(target))
                for artifact in self.list_files(path):
                    (target / artifact.path).parent.mkdir(parents=True, exist_ok=True)
                    self._fs.get_file(f"{path}/{artifact.path}", str(target / artifact.path))
            yield target

    @contextmanager
    def offline_data(self, spec: TrainSpec) -> Iterator[Path | None]:
        """What an offline job trains on: its pairs file, or the folder that another job recorded. None for others.

        Raises InvalidInput when it is no longer there.
        """
        if spec.pairs_file is not None:
            field, path = "pairs_file", job_layout.upload_path(spec.pairs_file)
        elif spec.replay_job is not None:
            field, path = "replay_job", job_layout.job_path(spec.replay_job, CANDIDATES_FOLDER)
        else:
            yield None
            return
        with ExitStack() as stack:
            try:
                for attempt in stamina.retry_context(on=DependencyUnavailable, attempts=5):
                    with attempt:
                        found = stack.enter_context(self.local_path(path))
            except NotFound as error:
                raise InvalidInput(f"{field}: what the job trains on is no longer stored", field=field) from error
            yield found

    # ---- a job's working folder ---------------------------------------------------------------------------------

    def job_workdir(self, job_id: str) -> Path:
        """The local folder that a job trains in."""
        return (self.folder or self._scratch) / check_safe_path(job_layout.job_path(job_id))

    def has_room(self, job_id: str) -> bool:
        """Whether the store takes files and the job's working folder a checkpoint as large as its newest."""
        workdir = self.job_workdir(job_id)
        try:
            make_private_folder(workdir)
            newest = job_layout.newest_checkpoint(workdir)
            files = newest.rglob("*") if newest else ()
            needed = sum(path.stat().st_size for path in files if path.is_file())
            with tempfile.TemporaryFile(dir=workdir) as probe:
                probe.write(b"\0" * PROBE_BYTES)
                probe.flush()
            self._check_writable(job_id)
            return shutil.disk_usage(workdir).free > needed
        except (OSError, DependencyUnavailable):
            return False

    def _check_writable(self, job_id: str) -> None:
        """Write a file to the job's folder and delete it: a store that is full still reads. A plain folder is written
        to as it is.
        """
        if self.folder is None:
            probe = job_layout.job_path(job_id, ".probe")
            with store_errors():
                self._fs.pipe_file(probe, b"\0" * PROBE_BYTES)
                self._fs.rm_file(probe)

    def checkout_job(self, job_id: str, *, checkpoints: bool = True) -> None:
        """Make the working folder, holding whatever the store has of the job that a resume needs; without
        `checkpoints` what a report needs.
        """
        with store_errors():
            self._checkout_job(job_id, checkpoints=checkpoints)

    def _checkout_job(self, job_id: str, *, checkpoints: bool) -> None:
        job, workdir = check_safe_path(job_layout.job_path(job_id)), self.job_workdir(job_id)
        if self.folder is not None:
            make_private_folder(workdir)
            return
        shutil.rmtree(workdir, ignore_errors=True)  # files of an earlier claim may be older than the store's
        self._sent.clear()
        make_private_folder(workdir)
        names = [artifact.path for artifact in self.list_files(job)]
        whole = _complete_checkpoints(names)
        for name in names:
            top = name.partition("/")[0]
            needed = top in whole or step_of_checkpoint(top) is None
            needed &= checkpoints or (top != INITIAL_FOLDER and top not in whole)
            if needed and top != CANDIDATES_FOLDER and not name.endswith(f"/{COMPLETE_MARK}"):
                (workdir / name).parent.mkdir(parents=True, exist_ok=True)
                self._fs.get_file(f"{job}/{name}", str(workdir / name))
                if top == INITIAL_FOLDER:  # large at times, and never written by a worker
                    found = (workdir / name).stat()
                    self._sent[workdir / name] = (found.st_mtime_ns, found.st_size)

    def sync_job(self, job_id: str, workdir: Path) -> None:
        """Upload what is new in the working folder and delete checkpoints that were pruned there. A plain folder needs
        none.

        A checkpoint without its mark may be any part of a copy that was cut short: all of it is sent. Of those that are
        not here only older ones than our newest go: later ones may be those of a worker that took the job over.
        """
        if self.folder is None:
            with store_errors():
                self._sync_job(job_id, workdir)

    def _sync_job(self, job_id: str, workdir: Path) -> None:
        job = check_safe_path(job_layout.job_path(job_id))
        there = [artifact.path for artifact in self.list_files(job)]
        whole = _complete_checkpoints(there)
        here = {path.relative_to(workdir).as_posix(): path for path in workdir.rglob("*") if path.is_file()}
        here = {name: path for name, path in here.items() if _SAFE_PATH.fullmatch(name)}
        for name, path in here.items():
            found = path.stat()
            stamp = (found.st_mtime_ns, found.st_size)
            if name.partition("/")[0] not in whole and self._sent.get(path) != stamp:
                if self._has_folders:
                    self._fs.makedirs(f"{job}/{name}".rpartition("/")[0], exist_ok=True)
                self._fs.put_file(str(path), f"{job}/{name}")
                self._sent[path] = stamp
        ours = job_layout.checkpoint_steps(workdir)
        for step in ours:
            if checkpoint_name(step) not in whole:
                self._fs.pipe_file(f"{job}/{checkpoint_name(step)}/{COMPLETE_MARK}", b"")
        for top in {name.partition("/")[0] for name in there}:
            step_there = step_of_checkpoint(top)
            if step_there is not None and ours and step_there < ours[-1] and step_there not in ours:
                self._fs.rm(f"{job}/{top}", recursive=True)


def _complete_checkpoints(names: Iterable[str]) -> set[str]:
    """The checkpoints among a job's stored files that have their mark."""
    tops = {name.removesuffix(f"/{COMPLETE_MARK}") for name in names if name.endswith(f"/{COMPLETE_MARK}")}
    return {top for top in tops if step_of_checkpoint(top) is not None}
