"""Modules of our other packages, imported when a command runs: this package depends on none of them."""

from __future__ import annotations

import importlib
from typing import Any

from dipole.errors import ConfigurationError


def import_optional(name: str, extra: str) -> Any:
    """The module; ConfigurationError with a sentence where the dependencies of `extra` are not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{error.name} is not installed: pip install 'dipole[{extra}]'") from error
