"""The steps that are drawn and not trained yet, each with its groups.

Groups may change places: where nothing of the first window has its rankings, and one of its groups is pending at a slow
reward, a group of a later window that has them takes its place. It is trained on at most `max_staleness` steps after
the one that it was drawn for, and whoever had to wait is in the window that it came from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from dipole_trainer.ranking.groups import RankedGroup
from dipole_trainer.training.groups_in_flight import WaitingGroup


@dataclass
class Window:
    """The groups of one step, and what became of them so far."""

    step: int
    groups: dict[str, WaitingGroup]
    recorded: list[dict[str, Any]] = field(default_factory=list)  # what the recorder is to keep
    seconds: dict[str, float] = field(default_factory=lambda: {"generate": 0.0, "wait": 0.0, "update": 0.0})
    reports: int = 0  # that it waits for pending rankings
    report_at: float = 0.0  # of `seconds["wait"]`: when it is said next

    def untrained(self) -> list[WaitingGroup]:
        return [each for each in self.groups.values() if not each.is_trained]


class Windows:
    """In the order of their steps; the first is the one that is trained on."""

    def __init__(self, max_staleness: int) -> None:
        self.max_staleness = max_staleness
        self._windows: deque[Window] = deque()

    @property
    def first(self) -> Window:
        return self._windows[0]

    def has_room(self) -> bool:
        """Whether another step may be drawn ahead."""
        return len(self._windows) <= self.max_staleness

    def next_step(self, finished_steps: int) -> int:
        """The step to be drawn next."""
        return self._windows[-1].step + 1 if self._windows else finished_steps

    def append(self, window: Window) -> None:
        self._windows.append(window)

    def drop_first(self) -> None:
        """It is trained on."""
        self._windows.popleft()

    def groups(self) -> Iterator[WaitingGroup]:
        for window in self._windows:
            yield from window.groups.values()

    def keep_ranked(self, ranked: RankedGroup) -> None:
        """An answer, to its group; nobody waits for one of another run."""
        for window in self._windows:
            if ranked.group_id in window.groups:
                window.groups[ranked.group_id].ranked = ranked

    def fill_in_ranked(self, pending: Collection[str]) -> bool:
        """Have a ranked group of a later window change places with one of the first's that is among `pending`. Whether
        there were two.
        """
        current = self.first
        for slow in (each for each in current.untrained() if each.id in pending):
            for later in list(self._windows)[1:]:
                ready = next((each for each in later.groups.values() if each.ranked), None)
                if ready is not None and later.step - slow.step <= self.max_staleness:
                    del current.groups[slow.id], later.groups[ready.id]
                    slow.window, ready.window = ready.window, slow.window
                    slow.place, ready.place = ready.place, slow.place
                    current.groups[ready.id], later.groups[slow.id] = ready, slow
                    slow.drawn.graphs.clear()  # of weights that will have moved on
                    return True
        return False

    def restore(self, groups: Collection[WaitingGroup]) -> None:
        """Put back what a checkpoint kept, each group in the window that it was in."""
        windows: dict[int, Window] = {}
        for each in groups:
            windows.setdefault(each.window, Window(each.window, {})).groups[each.id] = each
        self._windows.extend(windows[step] for step in sorted(windows))
