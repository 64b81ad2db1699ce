"""Files that hold pairs in another form: Parquet, as Hugging Face's datasets has them, and a zip or tar of JSON lines
with the images that they name.

    Parquet      columns `prompt`, `chosen`, `rejected`, others are left; images are binary, base64 as text, or structs
                 of {bytes, path} whose bytes are there
    zip, tar     one file of JSON lines; a `chosen` or `rejected` that is a path, from that file's folder or from the
                 top, is the member of that name. Nothing is unpacked to disk, links lead nowhere

A damaged or hostile file may end the process that reads it, or grow without end: so a process of its own does, `python
-m dipole_trainer.datasets.containers FILE`, with bounds on memory and time. It prints a pairs file's JSON lines, which
are judged like any other's.
"""

from __future__ import annotations

import base64
import json
import os
import posixpath
import resource
import stat
import subprocess
import sys
import tarfile
import tempfile
import unicodedata
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from dipole.errors import ConfigurationError, InvalidInput
from dipole.protocol import file_kinds
from dipole_trainer.datasets.lines import MAX_PAIR_LINE_BYTES, Utf8Lines

CONTAINERS = (file_kinds.PARQUET, file_kinds.ZIP, file_kinds.TAR)
SIDES = ("chosen", "rejected")
PAIR_COLUMNS = ("prompt", *SIDES)
MAX_IMAGE_BYTES = 32 * 2**20
MAX_MEMORY_BYTES = 2 * 2**30
MAX_CPU_S = 900
READER_COMMAND = (sys.executable, "-P", "-m", "dipole_trainer.datasets.containers")
LOADER_VARIABLES = (
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "PYTHONHOME",
)  # of ours, no other: there are keys among them
STARTED = b"started\n"  # the reader's first line: whatever ends it before that is no fault of the file
_REFUSED_EXIT_CODE = 3  # exit status of a reader that wrote a refusal (JSON) to stderr

OpenMember = Callable[[], IO[bytes]]


@contextmanager
def container_as_json_lines(path: Path, *, field: str, reader: Sequence[str] = READER_COMMAND) -> Iterator[BinaryIO]:
    """A container as JSON lines. Raises InvalidInput at the end when they are not all there.

    Raises ConfigurationError when the reader does not start: this installation is broken, and not the file.
    """
    environment = {
        **{name: os.environ[name] for name in LOADER_VARIABLES if name in os.environ},
        "ARROW_DEFAULT_MEMORY_POOL": "system",
        "OMP_NUM_THREADS": "1",
        "PATH": os.defpath,
        # this process's own: it may not run in a virtual environment, nor from where its packages are
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
    }
    with (
        tempfile.TemporaryFile() as complaints,
        _start_reader([*reader, str(path)], complaints, environment) as process,
    ):
        assert process.stdout is not None
        try:
            started = process.stdout.readline(len(STARTED)) == STARTED
            if started:
                yield cast(BinaryIO, process.stdout)
            status = process.wait()
        finally:
            process.kill()
        complaints.seek(0)
        said = complaints.read().splitlines()
    if not started:
        why = said[-1].decode(errors="replace")[:300] if said else f"exit status {status}"
        raise _broken_installation(why)
    if status == _REFUSED_EXIT_CODE:
        told = json.loads(said[-1])
        where = f"{field}[{told['row']}].{told['side']}" if told["row"] else field
        raise InvalidInput(f"{where} {told['message']}", field=where)
    if status != 0:
        raise InvalidInput(
            f"{field} cannot be read: it is damaged, or takes too much memory or time (its reader ended)", field=field
        )


def _start_reader(
    command: Sequence[str], complaints: IO[bytes], environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(  # noqa: S603 (our own command)
            command, stdout=subprocess.PIPE, stderr=complaints, env=environment
        )
    except OSError as error:
        raise _broken_installation(str(error)) from error


def _broken_installation(why: str) -> ConfigurationError:
    return ConfigurationError(
        "the file was not looked at, because the process that reads Parquet, zip and tar does not start on this "
        f"server ({why}): its operator should reinstall Dipole with its extra `api`; JSON lines can be sent meanwhile"
    )


# ---- the reader's own process ---------------------------------------------------------------------------------------


class _ContainerRefused(Exception):
    """What is wrong with the file, or with one side of a row; a sentence whose subject is that."""

    def __init__(self, message: str, row: int = 0, side: str = "") -> None:
        super().__init__(message)
        self.row, self.side = row, side


def _main(path: str) -> None:
    from pyarrow import parquet as parquet  # before STARTED: where it is missing, that is not the file's fault

    for bound, limit in (
        (resource.RLIMIT_AS, MAX_MEMORY_BYTES),
        (resource.RLIMIT_CPU, MAX_CPU_S),
        (resource.RLIMIT_CORE, 0),
    ):
        _, most = resource.getrlimit(bound)
        least = limit if most == resource.RLIM_INFINITY else min(limit, most)
        # macOS refuses a bound on address space
        with suppress(ValueError, OSError):
            resource.setrlimit(bound, (least, least))
    sys.stdout.buffer.write(STARTED)
    sys.stdout.flush()
    try:
        for line in _read_lines(path):
            sys.stdout.buffer.write(line)
        sys.stdout.flush()
    except BrokenPipeError:
        os._exit(1)  # the parent stopped reading: it found a broken row
    except _ContainerRefused as refused:
        print(json.dumps({"message": str(refused), "row": refused.row, "side": refused.side}), file=sys.stderr)
        sys.exit(_REFUSED_EXIT_CODE)


def _read_lines(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        kind = file_kinds.recognize_file(file.read(file_kinds.HEAD_BYTES))
    try:
        if kind == file_kinds.PARQUET:
            yield from map(_dump_line, _read_parquet(path))
        elif kind == file_kinds.ZIP:
            with zipfile.ZipFile(path) as archive:
                yield from _read_archive(kind, _zip_members(archive))
        else:
            with tarfile.open(path, "r:") as tar:
                yield from _read_archive(kind, _tar_members(tar))
    except (_ContainerRefused, BrokenPipeError):
        raise
    except Exception as error:
        # damaged files raise anything: pyarrow's own errors, BadZipFile, OSError, zlib.error, MemoryError …
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise _ContainerRefused(f"is {kind} that cannot be read: {reason}") from None


def _dump_line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, separators=(",", ":")).encode() + b"\n"


def _read_parquet(path: str) -> Iterator[dict[str, Any]]:
    from pyarrow import parquet

    file = parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**20)
    missing = [name for name in PAIR_COLUMNS if name not in file.schema_arrow.names]
    if missing:
        raise _ContainerRefused(
            f"is a Parquet file without {', '.join(missing)}: its columns must be {', '.join(PAIR_COLUMNS)}"
        )
    # one row at a time: a dictionary of few large values may stand for many rows
    batches = file.iter_batches(batch_size=1, columns=list(PAIR_COLUMNS), use_threads=False)
    for number, batch in enumerate(batches, 1):
        (row,) = batch.to_pylist()
        if not isinstance(row["prompt"], str):
            raise _ContainerRefused("must be text", number, "prompt")
        sides = {side: _image_base64(row[side], number, side) for side in SIDES}
        yield {"prompt": row["prompt"], **sides}


def _image_base64(value: Any, row: int, side: str) -> str:
    """An image in base64, or the text that stands in its place. Raises _ContainerRefused for what is neither."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        return value
    if not isinstance(value, bytes):
        raise _ContainerRefused("is no image: binary is, base64 as text, or a struct with bytes", row, side)
    if len(value) > MAX_IMAGE_BYTES:
        raise _ContainerRefused(f"is an image of {len(value)} bytes; at most {MAX_IMAGE_BYTES} are taken", row, side)
    return base64.b64encode(value).decode()


def _zip_members(archive: zipfile.ZipFile) -> dict[str, OpenMember]:
    """Plain files by their names; what a link holds is the path that it leads to, and that is no image."""
    return {
        _member_name(each.filename.replace("\\", "/")): partial(archive.open, each)
        for each in archive.infolist()
        if not each.is_dir() and not stat.S_ISLNK(each.external_attr >> 16)
    }


def _tar_members(archive: tarfile.TarFile) -> dict[str, OpenMember]:
    return {
        _member_name(each.name): cast(OpenMember, partial(archive.extractfile, each))
        for each in archive
        if each.isfile()
    }


def _member_name(path: str) -> str:
    """As members are looked for: macOS writes "ü" as two characters, JSON mostly as one."""
    return unicodedata.normalize("NFC", posixpath.normpath(path))


def _read_archive(kind: str, members: dict[str, OpenMember]) -> Iterator[bytes]:
    """The lines of the one file of JSON lines, with images in the place of their paths."""
    # hidden ones are what macOS adds beside every file
    seen = [name for name in members if not any(part.startswith(("__MACOSX", ".")) for part in name.split("/"))]
    found = [name for name in seen if name.lower().endswith((".jsonl", ".ndjson"))]
    found = found or [name for name in seen if name.lower().endswith(".json")]
    if len(found) != 1:
        holds = f"several files of JSON lines ({', '.join(sorted(found)[:3])})" if found else "no file of JSON lines"
        raise _ContainerRefused(
            f"is {kind} with {holds}: one is taken, of pairs, with the images that it names beside it"
        )
    (name,) = found
    with members[name]() as file:
        if (inside := file_kinds.recognize_file(file.read(file_kinds.HEAD_BYTES))) != file_kinds.JSON_LINES:
            raise _ContainerRefused(f"is {kind} whose {name} is {inside}: JSON lines of pairs are wanted there")
    with members[name]() as file, Utf8Lines(cast(BinaryIO, file)) as lines:
        number = 0
        while line := lines.readline(MAX_PAIR_LINE_BYTES + 1):
            number += 1
            yield _inline_images(line, number, members, posixpath.dirname(name))


def _inline_images(line: bytes, number: int, members: dict[str, OpenMember], folder: str) -> bytes:
    """A line whose paths are images; any other as it is: it is judged outside."""
    try:
        row = json.loads(line)
    except ValueError:
        return line
    if not isinstance(row, dict):
        return line
    for side in SIDES:
        path = row.get(side)
        if isinstance(path, dict):
            path = path.get("path") if not path.get("bytes") else None
        if not isinstance(path, str) or len(path) > 4096:
            continue
        below = (_member_name(posixpath.join(top, path.replace("\\", "/"))) for top in (folder, ""))
        member = next((each for each in below if each in members), None)
        if member is not None:
            with members[member]() as file:
                row[side] = _image_base64(file.read(MAX_IMAGE_BYTES + 1), number, side)
        elif posixpath.splitext(path)[1] and "://" not in path:
            raise _ContainerRefused(f"names {path[:200]!r}, which the archive does not hold as a file", number, side)
    return _dump_line(row)


if __name__ == "__main__":
    _main(sys.argv[1])
