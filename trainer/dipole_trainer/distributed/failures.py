"""How a run ends for the other processes, and an exception on its way to them. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dipole.errors import DipoleError, InvalidInput, RewardUnavailable


class Over(Exception):
    """Rank 0 has left the run. Raised on the others alone."""


class ProcessLost(Exception):
    """Another process of this world is gone. No fault of the job's: who takes it up goes on from its checkpoint."""


def as_json(problem: Exception) -> dict[str, Any]:
    """What other processes need to know of an exception."""
    ours = isinstance(problem, DipoleError)
    known = {name: getattr(problem, name, None) for name in ("reward", "code", "field")} if ours else {}
    return {
        "kind": next((kind.__name__ for kind in _KINDS if isinstance(problem, kind)), ""),
        "message": str(problem) if ours else f"{type(problem).__name__}: {problem}",
        **known,
    }


def from_json(told: Mapping[str, Any], where: str) -> Exception:
    """The exception that another process had; `where` says which."""
    if told["kind"] == RewardUnavailable.__name__:
        return RewardUnavailable(told["message"], reward=told["reward"], code=told["code"])
    if told["kind"] == InvalidInput.__name__:
        return InvalidInput(f"{told['message']} ({where})", field=told["field"])
    return DipoleError(f"{told['message']} ({where})")


_KINDS = (RewardUnavailable, InvalidInput)
