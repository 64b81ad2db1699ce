"""The files of docker compose as it reads them where no variable is set that has a default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
DEFAULT = re.compile(r"\$\{(\w+):-([^}]*)\}")


def load_services(name: str = "docker-compose.yml", **variables: str) -> dict[str, dict[str, Any]]:
    """The services of a file, `${NAME:-default}` being the variable of that name or else the default."""
    text = DEFAULT.sub(lambda found: variables.get(found[1], found[2]), (ROOT / name).read_text())
    services: dict[str, dict[str, Any]] = yaml.safe_load(text)["services"]
    return services
