"""Parquet files of pairs, as Hugging Face's datasets has them: columns `prompt`, `chosen`, `rejected`; others are left.

Images are binary, or structs of {bytes, path} whose bytes are there. Needs pyarrow, which is imported when such a file
comes. Memory is bounded: by what the file says of its row groups before any is read, and by reading row after row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from dipole.errors import InvalidInput, TooLarge

MAGIC = b"PAR1"
COLUMNS = ("prompt", "chosen", "rejected")
MAX_COLUMN_BYTES = 2**30  # of one column in one row group, decompressed


def rows(source: BinaryIO, *, field: str) -> Iterator[tuple[int, Any, dict[str, bytes]]]:
    """(number from 1, prompt as it is, bytes of `chosen` and `rejected`). Raises InvalidInput that names the row."""
    from pyarrow import parquet  # a big library, for one kind of upload

    try:
        file = parquet.ParquetFile(source, pre_buffer=False)
        _check_columns(file, field)
        # one row at a time: a dictionary of few large values may stand for many rows
        for number, batch in enumerate(file.iter_batches(batch_size=1, columns=list(COLUMNS), use_threads=False), 1):
            (row,) = batch.to_pylist()
            sides = {side: _bytes(row[side], f"{field}[{number}].{side}") for side in ("chosen", "rejected")}
            yield number, row["prompt"], sides
    except InvalidInput:
        raise
    except Exception as error:  # pyarrow raises anything on damaged files: its own errors, OSError, KeyError …
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InvalidInput(f"{field} is a Parquet file that cannot be read: {reason}", field=field) from None


def _check_columns(file: Any, field: str) -> None:
    missing = [name for name in COLUMNS if name not in file.schema_arrow.names]
    if missing:
        raise InvalidInput(
            f"{field}: the Parquet file lacks the columns {', '.join(missing)}; needed are {', '.join(COLUMNS)}",
            field=field,
        )
    for group in range(file.metadata.num_row_groups):
        chunks = file.metadata.row_group(group)
        for column in range(chunks.num_columns):
            chunk = chunks.column(column)
            if chunk.path_in_schema.split(".")[0] in COLUMNS and chunk.total_uncompressed_size > MAX_COLUMN_BYTES:
                raise TooLarge(
                    f"{field}: column {chunk.path_in_schema} has a row group of more than {MAX_COLUMN_BYTES} bytes: "
                    "write smaller row groups",
                    field=field,
                )


def _bytes(value: Any, where: str) -> bytes:
    """An image's bytes. Raises InvalidInput for what only says where they are."""
    if isinstance(value, dict):
        value = value.get("bytes")
    if isinstance(value, bytes):
        return value
    raise InvalidInput(f"{where} is no image: binary is, or a struct with bytes; nothing is fetched", field=where)
