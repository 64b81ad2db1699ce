"""How a check ends when it does not pass."""

from __future__ import annotations


class Failed(Exception):
    """The fact does not hold; the message says what was seen."""


class Unreachable(Failed):
    """No answer, or none in time."""


class Skipped(Exception):
    """The endpoint does not offer what the check is about."""
