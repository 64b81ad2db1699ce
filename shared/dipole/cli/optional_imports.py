"""Modules whose dependencies an image may lack, imported when a command runs."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dipole.errors import ConfigurationError, how_to_install


def import_optional(name: str, extra: str) -> Any:
    """A module of our other packages, on which this one depends not; else ConfigurationError with a sentence."""
    with explain_missing(extra):
        return importlib.import_module(name)


@contextmanager
def explain_missing(extra: str) -> Iterator[None]:
    """Whatever is imported inside; ConfigurationError with a sentence where the dependencies of `extra` are missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{error.name} is not installed: {how_to_install(extra)}") from error
