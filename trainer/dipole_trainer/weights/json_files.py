"""JSON of folders that others made: a model's index and configs. Whatever it holds, a caller is told which is odd."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dipole.errors import InvalidInput


def read_json_object(path: Path, *, field: str) -> dict[str, Any]:
    """The object that the file holds. Raises InvalidInput on `field` where it cannot be read as one."""
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise InvalidInput(f"{field}: {path} cannot be read as JSON: {error}", field=field) from error
    if not isinstance(found, dict):
        raise InvalidInput(f"{field}: {path} holds no JSON object", field=field)
    return found
