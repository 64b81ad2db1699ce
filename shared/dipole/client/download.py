"""A body that is written to a file while it comes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import httpx

from dipole.whole_files import replacing


def save_body(
    stream: AbstractContextManager[httpx.Response], target: Path, error_of: Callable[[httpx.Response], Exception]
) -> int:
    """Write an answer's body to `target`, whole or not at all; its bytes.

    Raises what `error_of` makes of an answer that is an error, and httpx.HTTPError.
    """
    size = 0
    with replacing(target) as partial, stream as answer, partial.open("wb") as file:
        if answer.is_error:
            answer.read()
            raise error_of(answer)
        for chunk in answer.iter_bytes():
            size += file.write(chunk)
    return size
