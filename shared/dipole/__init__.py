"""Dipole's shared package: the ranking protocol, its client, what every process has in common. No torch, no FastAPI.

What is exported here is for others; modules below are ours alone, but for those that docs/architecture.md lists. Names
are imported when they are asked for: `import dipole` stays as cheap as a probe needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dipole.client.connection import EndpointError
    from dipole.client.endpoint import Endpoint
    from dipole.client.rank_client import RankClient
    from dipole.client.trainer_api import TrainerApi, TrainerApiError

__all__ = ["Endpoint", "EndpointError", "RankClient", "TrainerApi", "TrainerApiError"]

_HOMES = {
    "Endpoint": "dipole.client.endpoint",
    "EndpointError": "dipole.client.connection",
    "RankClient": "dipole.client.rank_client",
    "TrainerApi": "dipole.client.trainer_api",
    "TrainerApiError": "dipole.client.trainer_api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
