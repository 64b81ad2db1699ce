"""Anything the training loop reports, as plain JSON: an event must never fail on a NaN, a Path or a numpy scalar."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def to_jsonable(value: Any) -> Any:
    """JSON values pass; numbers that are not finite become None (JSON has none), the rest its item() or its text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    # PostgreSQL stores no NUL, and UTF-8 has no lone surrogates
    if isinstance(value, str):
        return value.replace("\x00", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, Mapping):
        return {to_jsonable(str(key)): to_jsonable(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_jsonable(each) for each in value]
    # numpy and torch, scalars and arrays
    if callable(getattr(value, "tolist", None)):
        return to_jsonable(value.tolist())
    return str(value)
