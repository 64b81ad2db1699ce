"""The feature keys a job uses: its own, or the published defaults."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dipole.errors import InvalidInput


def choose_keys(
    wanted: Sequence[str], known: Iterable[str], published: Sequence[str], *, space: str
) -> tuple[str, ...]:
    """The job's keys, or the published ones where it names none. Raises InvalidInput for one that is not `known`."""
    keys, known = tuple(wanted or published), list(known)
    for key in keys:
        if key not in known:
            raise InvalidInput(
                f"features.keys: {space} has no {key!r} here; there are {', '.join(known)}", field="features.keys"
            )
    return keys
