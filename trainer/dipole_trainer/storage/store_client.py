"""The client of an artifact store: how it is opened, how its files are read, and what its errors mean.

An object store says what is wrong in its answer's code: QuotaExceeded is Ceph's, XMinioStorageFull and
XMinioAdminBucketQuotaExceeded are MinIO's, and any may answer 507 Insufficient Storage.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import fsspec

from dipole.errors import (
    ConfigurationError,
    DependencyUnavailable,
    DipoleError,
    how_to_install,
    is_storage_full,
)

RETRY_AFTER_S = 30.0  # a full disk is looked after by somebody, a bucket comes back
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5, 10  # of an S3 client, which tries each request five times
PARTS_AT_ONCE = 2  # of 50 MiB, of a large file that an S3 client writes: it reads them into memory
READ_BYTES = 4 * 2**20  # of a file at once
FULL_CODES = ("QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientStorage")
INSUFFICIENT_STORAGE = 507
PROBE_FOLDER = ".doctor"  # hidden: neither listed nor in a backup


def open_store(url: str) -> tuple[Any, str]:
    """The file system behind an fsspec URL, and the path in it. Raises ConfigurationError where its client is not
    installed.
    """
    options: dict[str, Any] = {"use_listings_cache": False}  # other processes write there too
    if url.startswith(("s3://", "s3a://")):
        # its own attempts are enough: botocore would make five of each, and a hang would last for minutes
        timeouts = {"connect_timeout": CONNECT_TIMEOUT_S, "read_timeout": READ_TIMEOUT_S}
        options["config_kwargs"] = {**timeouts, "retries": {"total_max_attempts": 1}}
        options["max_concurrency"] = PARTS_AT_ONCE
    try:
        return fsspec.core.url_to_fs(url, **options)  # type: ignore[no-any-return]
    except ImportError as error:
        raise ConfigurationError(f"DIPOLE_ARTIFACTS_URL={url}: {error}. For s3:// {how_to_install('s3')}") from error


@contextmanager
def store_errors(asked: str = "") -> Iterator[None]:
    """Tell what a store's client raises, which is its own affair, as DependencyUnavailable; our own errors pass."""
    try:
        yield
    except DipoleError:
        raise
    except Exception as error:
        said = str(error) or type(error).__name__
        what = f"the artifact store (DIPOLE_ARTIFACTS_URL){asked} {_describe_state(error)}: {said}"
        raise DependencyUnavailable(what, retry_after=RETRY_AFTER_S) from error


def probe_store(url: str) -> None:
    """Write a small object, list, read and delete it, as the platform does. Raises ConfigurationError where the store's
    client is not installed, and DependencyUnavailable that says which of these failed.
    """
    fs, root = open_store(url)
    folder = f"{root.rstrip('/')}/{PROBE_FOLDER}"
    probe, data = f"{folder}/{uuid.uuid4().hex}", b"dipole doctor"

    def find_probe() -> None:
        if not any(str(found).endswith(probe.rpartition("/")[2]) for found in fs.find(folder)):
            raise FileNotFoundError(f"{probe} was written and is not listed")

    def read_probe() -> None:
        if (found := fs.cat_file(probe)) != data:
            raise OSError(f"{probe} was written and reads as {len(found)} other bytes")

    steps = {"write": lambda: fs.pipe_file(probe, data), "list": find_probe, "read": read_probe}
    try:
        for doing, step in steps.items():
            with store_errors(f", asked to {doing} {probe},"):
                step()
    except DependencyUnavailable:
        with suppress(Exception):
            fs.rm_file(probe)
        raise
    with store_errors(f", asked to delete {probe}, which stays there,"):
        fs.rm_file(probe)


def find_info(fs: Any, path: str) -> dict[str, Any] | None:
    """What a store knows of a path; None where there is nothing. fsspec's isfile() says False of a store that is away
    too. Raises what its client raises, also where the bucket itself is missing.
    """
    try:
        return dict(fs.info(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        if _error_code(error)[0] == "NoSuchBucket":
            raise
        return None


def open_reader(fs: Any, path: str) -> io.BufferedReader:
    """A stored file for reading, whose reads raise as store_errors() does."""
    return io.BufferedReader(_StoredFile(fs.open(path, "rb", block_size=READ_BYTES)), READ_BYTES)


class _StoredFile(io.RawIOBase):
    """A file that a store's client has opened."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readinto(self, buffer: Any) -> int:
        with store_errors():
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with store_errors():
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()


def _describe_state(error: Exception) -> str:
    code, status = _error_code(error)
    if is_storage_full(error) or code in FULL_CODES or status == INSUFFICIENT_STORAGE:
        return "is full"
    if code == "NoSuchBucket":
        return "has no such bucket"
    if isinstance(error, PermissionError):
        return "refuses us"
    return "does not answer"


def _error_code(error: BaseException | None) -> tuple[str, int]:
    """The code and the HTTP status that an S3 server answered, which s3fs keeps in the error's cause."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return str(response.get("Error", {}).get("Code", "")), int(status)
        error = error.__cause__
    return "", 0
