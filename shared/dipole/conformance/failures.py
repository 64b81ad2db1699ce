"""How a check ends when it does not pass."""

from __future__ import annotations


class CheckFailed(Exception):
    """The fact does not hold; the message says what was seen."""


class EndpointUnreachable(CheckFailed):
    """No answer, or none in time."""


class CheckSkipped(Exception):
    """The endpoint does not offer what the check is about."""
