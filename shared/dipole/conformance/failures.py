"""How a check ends when it does not pass."""

from __future__ import annotations


class CheckFailed(Exception):
    """The fact does not hold; the message says what was seen. `is_grave`: no warning, whatever the check's level."""

    def __init__(self, message: str, *, is_grave: bool = False) -> None:
        super().__init__(message)
        self.is_grave = is_grave


class EndpointUnreachable(CheckFailed):
    """No answer, which is never a matter of manners."""

    def __init__(self, message: str) -> None:
        super().__init__(message, is_grave=True)


class EndpointSlow(EndpointUnreachable):
    """No answer in time."""


class CheckSkipped(Exception):
    """The endpoint does not offer what the check is about."""
