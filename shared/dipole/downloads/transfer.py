"""Fetches one file: goes on where an earlier try stopped, and takes nothing that is not what was asked for.

While bytes arrive they lie in NAME.part; the name itself appears when all are there and their checksum is right. The
hub's own client begins a file anew in each run and compares sizes alone; the largest file here has 17 GB.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import httpx

from dipole.client.environment import environment_options
from dipole.downloads.remote_file import PIECE_BYTES, RemoteFile
from dipole.errors import DownloadError, is_storage_full

MAX_REDIRECTS = 10
MAX_FAILURES = 5  # in a row, without a byte between them
FIRST_WAIT_S = 0.5  # doubles with each
TIMEOUT = httpx.Timeout(60, connect=15)
RETRIED_STATUS = {408, 425, 429, 500, 502, 503, 504}


class _Interrupted(Exception):
    """The bytes stopped; the same request may go on."""


def download_file(
    remote: RemoteFile, target: Path, *, report: Callable[[int], None], first_wait_s: float = FIRST_WAIT_S
) -> None:
    """Bring a file to `target`. `report` is told how many bytes are there, now and then. Raises DownloadError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = part_path(target)
    try:
        with part.open("a+b") as file:
            _lock(file, target)
            digest = _receive_all(remote, file, report, first_wait_s)
    except OSError as error:
        if is_storage_full(error):
            raise DownloadError(
                f"the disk that holds {target.parent} is full: {part.name} is kept; free some space and run the same "
                "command again, it goes on from there"
            ) from error
        raise
    if remote.checksum is not None and digest != remote.checksum.digest:
        part.unlink()
        raise DownloadError(
            f"{remote.local or remote.url} is not what was published: its checksum is {digest[:16]}…, not "
            f"{remote.checksum.digest[:16]}…; what was fetched of it is thrown away. Run the same command again; where "
            "that does not help, the file is damaged there, or something on the way changes it"
        )
    part.replace(target)


def part_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def probe_size(url: str) -> int | None:
    """Bytes of what lies at an address, where it says so. Raises DownloadError when it is not there."""
    try:
        with _open_stream(url, {}) as response:
            length = response.headers.get("content-length", "")
            return int(length) if length.isdecimal() else None
    except (httpx.TransportError, _Interrupted) as error:
        raise DownloadError(_describe_unreachable(url, error)) from error


def _receive_all(remote: RemoteFile, file: IO[bytes], report: Callable[[int], None], first_wait_s: float) -> str:
    """Append until the file is whole; returns the hexadecimal digest of all of it, empty without a checksum."""
    failures = 0
    while True:
        before = file.seek(0, os.SEEK_END)
        try:
            digest = _receive(remote, file, report)
            if remote.size is not None and file.tell() < remote.size:
                raise _Interrupted("the answer was too short")
            return digest
        except (httpx.TransportError, _Interrupted) as error:
            failures = 1 if file.tell() > before else failures + 1
            if failures >= MAX_FAILURES:
                raise DownloadError(
                    f"{_describe_unreachable(remote.url, error)}; {file.tell()} bytes of {remote.name} are kept, and "
                    "the same command goes on from there"
                ) from error
            time.sleep(first_wait_s * 2 ** (failures - 1))


def _receive(remote: RemoteFile, file: IO[bytes], report: Callable[[int], None]) -> str:
    """One request for what is not there yet. The digest covers what is there too."""
    have = file.tell()
    if remote.local is not None or remote.size is None or have > remote.size:
        have = _empty(file)
    hasher = _hash_start(remote, file)
    report(have)
    if remote.local is not None:
        _copy_pieces(_read_pieces(remote.local), file, hasher, report)
    elif have != remote.size:
        asked = {"Range": f"bytes={have}-"} if have else {}
        with _open_stream(remote.url, {**remote.headers, **asked}) as response:
            if have and response.status_code != httpx.codes.PARTIAL_CONTENT:
                _empty(file)  # all of it comes again
                hasher = _hash_start(remote, file)
            _copy_pieces(response.iter_raw(), file, hasher, report)
    return hasher.hexdigest() if hasher else ""


def _copy_pieces(pieces: Iterator[bytes], file: IO[bytes], hasher: Any, report: Callable[[int], None]) -> None:
    for piece in pieces:
        file.write(piece)
        if hasher:
            hasher.update(piece)
        report(file.tell())
    file.flush()


def _hash_start(remote: RemoteFile, file: IO[bytes]) -> Any:
    """A hash that was fed what is in the file; none where there is nothing to compare with. Ends at the file's end."""
    if remote.checksum is None:
        return None
    hasher = remote.checksum.start(remote.size)
    file.seek(0)
    while piece := file.read(PIECE_BYTES):
        hasher.update(piece)
    return hasher


def _empty(file: IO[bytes]) -> int:
    file.seek(0)
    return file.truncate()


def _read_pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


@contextmanager
def _open_stream(url: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
    """An answer with the bytes as they are; redirects are followed with each host's own proxy. Raises DownloadError."""
    request: httpx.Request | None = httpx.Request("GET", url, headers={**headers, "Accept-Encoding": "identity"})
    with ExitStack() as stack:
        for _ in range(MAX_REDIRECTS):
            assert request is not None
            client = stack.enter_context(httpx.Client(**environment_options(str(request.url)), timeout=TIMEOUT))
            response = client.send(request, stream=True)
            stack.callback(response.close)
            if not response.is_redirect:
                _check_status(response, url)
                yield response
                return
            request = response.next_request  # without the token, where it leads to another host
    raise DownloadError(f"{url} leads from one address to the next without end")


def _check_status(response: httpx.Response, url: str) -> None:
    status = response.status_code
    if status in RETRIED_STATUS:
        raise _Interrupted(f"it answers {status}")
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise DownloadError(
            f"{url} is refused ({status}): accept the licence on its page, then log in with `hf auth login` or set "
            "HF_TOKEN"
        )
    if status not in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
        raise DownloadError(f"{url} answers {status} and gives no file")


def _describe_unreachable(url: str, error: Exception) -> str:
    host = httpx.URL(url).netloc.decode()
    return (
        f"{host} cannot be reached, or stops answering ({error or type(error).__name__}): see the network, or give a "
        "folder that has the files with --from"
    )


def _lock(file: IO[bytes], target: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DownloadError(f"{target} is being fetched by another process: wait for it") from None
