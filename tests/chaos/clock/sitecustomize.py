"""A wall clock that a file sets wrong, for every Python that finds this first on its PYTHONPATH.

libfaketime does it for Redis and PostgreSQL, but under its version 0.9.10 Python's time.sleep() fails with EINVAL.
DIPOLE_CHAOS_CLOCK names a file with the seconds that are added to what time.time() says; it is read once a second.
"""

import os
import time

_FILE, _REAL_TIME, _LOOK_S = os.environ.get("DIPOLE_CHAOS_CLOCK"), time.time, 1.0
_offset_s, _look_at = 0.0, 0.0


def _faked_time() -> float:
    global _offset_s, _look_at
    if time.monotonic() >= _look_at:
        _look_at = time.monotonic() + _LOOK_S
        try:
            with open(str(_FILE)) as file:
                _offset_s = float(file.read())
        except (OSError, ValueError):
            pass  # as before
    return _REAL_TIME() + _offset_s


if _FILE:
    time.time = _faked_time
    time.time_ns = lambda: int(_faked_time() * 1e9)
