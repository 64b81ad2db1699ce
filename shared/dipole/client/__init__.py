"""Asking: any reward endpoint, and the trainer's REST API.

    from dipole.client import Client, AsyncClient        # scores of images, for whoever trains with something else

Names are imported when they are asked for: importing a module below stays cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dipole.client.scores.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dipole.client.scores import client

    return getattr(client, name)
