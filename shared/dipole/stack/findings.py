"""What a look at a set-up finds: a line a check, with what to do where something is not right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MAX_CLOCK_DIFFERENCE_S = 2.0


@dataclass(frozen=True)
class Finding:
    """`message` says what is, `fix` what to do; an ok one has no fix. A warning may be meant so, a problem never is."""

    check: str
    status: Literal["ok", "warning", "problem"]
    message: str
    fix: str | None = None


def compare_clocks(check: str, theirs: float, ours: float) -> Finding:
    """Leases and deadlines are by the database's and Redis's clocks; this machine's dates its logs and certificates."""
    difference = theirs - ours
    if abs(difference) <= MAX_CLOCK_DIFFERENCE_S:
        return Finding(check, "ok", f"within {MAX_CLOCK_DIFFERENCE_S:g} s of this machine's")
    side = "ahead of" if difference > 0 else "behind"
    return Finding(
        check,
        "problem",
        f"{abs(difference):.1f} s {side} this machine's",
        "run an NTP client, as chrony, on both machines",
    )
