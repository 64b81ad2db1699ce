"""How a run ends for the other processes, and an exception on its way to them. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dipole.errors import DependencyUnavailable, DipoleError, InvalidInput, RewardUnavailable


class RunEnded(Exception):
    """Rank 0 has left the run. Raised on the others alone."""


class PeerLost(Exception):
    """Another process of this group is gone. No fault of the job's: who takes it up goes on from its checkpoint."""


def exception_to_json(problem: Exception) -> dict[str, Any]:
    """What other processes need to know of an exception."""
    ours = isinstance(problem, DipoleError)
    known = {name: getattr(problem, name, None) for name in ("reward", "code", "field", "retry_after")} if ours else {}
    return {
        "kind": next((kind.__name__ for kind in _KNOWN_EXCEPTIONS if isinstance(problem, kind)), ""),
        "message": str(problem) if ours else f"{type(problem).__name__}: {problem}",
        **known,
    }


def exception_from_json(message: Mapping[str, Any], where: str) -> Exception:
    """The exception that another process had; `where` says which."""
    if message["kind"] == RewardUnavailable.__name__:
        return RewardUnavailable(message["message"], reward=message["reward"], code=message["code"])
    if message["kind"] == InvalidInput.__name__:
        return InvalidInput(f"{message['message']} ({where})", field=message["field"])
    if message["kind"] == DependencyUnavailable.__name__:
        return DependencyUnavailable(f"{message['message']} ({where})", retry_after=message["retry_after"])
    return DipoleError(f"{message['message']} ({where})")


_KNOWN_EXCEPTIONS = (RewardUnavailable, InvalidInput, DependencyUnavailable)
