"""Whether this host's worker lives: a file that it touches."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

from dipole.settings import PlatformSettings

HEALTHY_S = 120.0


def health_file(settings: PlatformSettings) -> Path:
    return settings.home / f"worker-{socket.gethostname()}.health"


def touch(settings: PlatformSettings) -> None:
    """Say that this worker lives."""
    path = health_file(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"pid": os.getpid(), "time": time.time()}))


def healthy(settings: PlatformSettings) -> bool:
    try:
        return time.time() - health_file(settings).stat().st_mtime < HEALTHY_S
    except FileNotFoundError:
        return False
