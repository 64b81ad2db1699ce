"""The Retry-After header."""

from __future__ import annotations

import math
import time
from email.utils import parsedate_to_datetime


def parse_retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header, in either of its forms; nonsense counts as absent, endless waits too."""
    if value is None:
        return None
    try:
        if value.strip().replace(".", "", 1).isdecimal():
            return float(value) if math.isfinite(float(value)) else None
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
