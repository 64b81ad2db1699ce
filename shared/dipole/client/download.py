"""A body that is written to a file while it comes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import httpx


def save_body(
    stream: AbstractContextManager[httpx.Response], target: Path, error_of: Callable[[httpx.Response], Exception]
) -> int:
    """Write an answer's body to `target`, whole or not at all; its bytes.

    Raises what `error_of` makes of an answer that is an error, and httpx.HTTPError.
    """
    partial = target.with_name(f".{target.name}.partial")
    size = 0
    try:
        with stream as answer, partial.open("wb") as file:
            if answer.is_error:
                answer.read()
                raise error_of(answer)
            for chunk in answer.iter_bytes():
                size += file.write(chunk)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return size
