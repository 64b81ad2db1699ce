"""Parquet files of pairs, as Hugging Face's datasets has them: columns `prompt`, `chosen`, `rejected`; others are left.

Images are binary, or structs of {bytes, path} whose bytes are there. pyarrow reads them, and a damaged file may end the
process that it is in: so a process of its own does, `python -m dipole_trainer.datasets.parquet FILE`, with bounds on
memory and time. It prints a pairs file's JSON lines, which are judged like any other's.
"""

from __future__ import annotations

import base64
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from dipole.errors import InvalidInput

PARQUET_MAGIC = b"PAR1"
PAIR_COLUMNS = ("prompt", "chosen", "rejected")
MAX_IMAGE_BYTES = 32 * 2**20
MAX_MEMORY_BYTES = 2 * 2**30
MAX_CPU_S = 900
READER_COMMAND = (sys.executable, "-I", "-m", "dipole_trainer.datasets.parquet")
_REFUSED_EXIT_CODE = 3  # exit status of a reader that wrote a refusal (JSON) to stderr


@contextmanager
def parquet_as_json_lines(path: Path, *, field: str, reader: Sequence[str] = READER_COMMAND) -> Iterator[BinaryIO]:
    """A Parquet file as JSON lines. Raises InvalidInput at the end when they are not all there."""
    environment = {"ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "1", "PATH": os.defpath}
    with (
        tempfile.TemporaryFile() as complaints,
        subprocess.Popen(  # noqa: S603 (our own command)
            [*reader, str(path)], stdout=subprocess.PIPE, stderr=complaints, env=environment
        ) as process,
    ):
        assert process.stdout is not None
        try:
            yield cast(BinaryIO, process.stdout)
            status = process.wait()
        finally:
            process.kill()
        complaints.seek(0)
        said = complaints.read().splitlines()
    if status == _REFUSED_EXIT_CODE:
        told = json.loads(said[-1])
        where = f"{field}[{told['row']}].{told['side']}" if told["row"] else field
        raise InvalidInput(f"{where}: {told['message']}", field=where)
    if status != 0:
        raise InvalidInput(f"{field} is a Parquet file that cannot be read: its reader crashed", field=field)


class _ParquetRefused(Exception):
    """What is wrong with the file, or with one side of a row."""

    def __init__(self, message: str, row: int = 0, side: str = "") -> None:
        super().__init__(message)
        self.row, self.side = row, side


def _main(path: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        for row in _read_rows(path):
            sys.stdout.write(json.dumps(row, separators=(",", ":")) + "\n")
    except BrokenPipeError:
        os._exit(1)  # the parent stopped reading: it found a broken row
    except _ParquetRefused as refused:
        print(json.dumps({"message": str(refused), "row": refused.row, "side": refused.side}), file=sys.stderr)
        sys.exit(_REFUSED_EXIT_CODE)


def _read_rows(path: str) -> Iterator[dict[str, Any]]:
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**20)
        missing = [name for name in PAIR_COLUMNS if name not in file.schema_arrow.names]
        if missing:
            raise _ParquetRefused(
                f"the Parquet file lacks {', '.join(missing)}: its columns must be {', '.join(PAIR_COLUMNS)}"
            )
        # one row at a time: a dictionary of few large values may stand for many rows
        batches = file.iter_batches(batch_size=1, columns=list(PAIR_COLUMNS), use_threads=False)
        for number, batch in enumerate(batches, 1):
            (row,) = batch.to_pylist()
            if not isinstance(row["prompt"], str):
                raise _ParquetRefused("a prompt is text", number, "prompt")
            yield {
                "prompt": row["prompt"],
                **{side: _image_base64(row[side], number, side) for side in PAIR_COLUMNS[1:]},
            }
    except _ParquetRefused:
        raise
    except Exception as error:
        # pyarrow raises anything on damaged files: its own errors, OSError, MemoryError …
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise _ParquetRefused(f"the Parquet file cannot be read: {reason}") from None


def _image_base64(value: Any, row: int, side: str) -> str:
    """An image's bytes in base64. Raises _ParquetRefused for what only says where they are."""
    if isinstance(value, dict):
        value = value.get("bytes")
    if not isinstance(value, bytes):
        raise _ParquetRefused("this is no image: binary is, or a struct with bytes; nothing is fetched", row, side)
    if len(value) > MAX_IMAGE_BYTES:
        raise _ParquetRefused(f"an image of {len(value)} bytes; at most {MAX_IMAGE_BYTES} are taken", row, side)
    return base64.b64encode(value).decode()


if __name__ == "__main__":
    _main(sys.argv[1])
