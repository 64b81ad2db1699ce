"""Which base models a job may name: the built-in `tiny-turbo`, and the folders under DIPOLE_MODELS_DIR.

Nothing else: a caller never names a path or a place to download from.
"""

from __future__ import annotations

import re
from pathlib import Path

from dipole.errors import InvalidInput

BUILT_IN = ("tiny-turbo",)
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")


def available(models_dir: Path) -> list[str]:
    """Names a job may give as `model`."""
    folders = models_dir.iterdir() if models_dir.is_dir() else ()
    return [*BUILT_IN, *sorted(path.name for path in folders if path.name not in BUILT_IN and _is_model(path))]


def locate(name: str, models_dir: Path) -> str:
    """What the training session is given: a built-in name as it is, or the folder's path. Raises InvalidInput."""
    if name in BUILT_IN:
        return name
    if _NAME.fullmatch(name) and _is_model(models_dir / name):
        return str((models_dir / name).resolve())
    known = ", ".join(available(models_dir))
    raise InvalidInput(f"unknown model {name!r}: known are {known} (folders under DIPOLE_MODELS_DIR)", field="model")


def _is_model(path: Path) -> bool:
    return _NAME.fullmatch(path.name) is not None and (path / "model_index.json").is_file()
