"""What a look at a set-up finds: a line a check, with what to do where something is not right."""

from __future__ import annotations

from collections.abc import Mapping
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


def compare_versions(check: str, theirs: Mapping[str, str | None], ours: str) -> Finding:
    """Of Dipole, by process; None where one does not say. An upgrade under way is told too."""
    if not (others := {name: version for name, version in theirs.items() if version != ours}):
        return Finding(check, "ok", f"{ours}, as here")
    said = ", ".join(f"{name} {version or 'does not say'}" for name, version in others.items())
    fix = (
        "bring the older ones to the newer version, after a backup (docs/backup.md), or go on with an upgrade under way"
    )
    return Finding(check, "warning", f"here {ours}: {said}", fix)
