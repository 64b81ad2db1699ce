"""What commands say while they wait: what for, and for how long, on a terminal and off.

On a terminal a line that counts; elsewhere plain lines, each of its own, that a log can keep.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

FIRST_REMINDER_S, MAX_REMINDER_PAUSE_S = 10.0, 300.0
LOOK_S = 0.2


class WaitReminder:
    """Says "still" of what is waited for: after ten seconds, then after twice as long, at most every five minutes."""

    def __init__(self, say: Callable[[str], None], *, first_s: float = FIRST_REMINDER_S) -> None:
        self._say = say
        self._first_s = first_s
        self._lock = threading.Lock()
        self._what = ""
        self._since = 0.0
        self._due = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._remind, name="wait reminder", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def wait_for(self, what: str) -> None:
        """From now on; the same as before goes on counting. Empty: nothing is waited for."""
        with self._lock:
            if what != self._what:
                self._what, self._since, self._due = what, time.monotonic(), self._first_s

    def heard(self) -> None:
        """Something came: the silence begins anew."""
        with self._lock:
            self._since, self._due = time.monotonic(), self._first_s

    def _remind(self) -> None:
        while not self._stop.wait(LOOK_S):
            with self._lock:
                waited = time.monotonic() - self._since
                if not self._what or waited < self._due:
                    continue
                self._due += min(self._due, MAX_REMINDER_PAUSE_S)
                text = f"still {self._what}: {format_minutes(waited)} so far"
            self._say(text)


class ShownWait:
    """A context in which a command waits for one thing. `stop` ends the showing before the context ends."""

    def __init__(self, console: Console, what: str, *, first_s: float = FIRST_REMINDER_S) -> None:
        self._console, self._what = console, what
        self._began = time.monotonic()
        self._is_shown = False
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self._bar = Progress(*columns, console=console, transient=True) if console.is_terminal else None
        self._reminder = WaitReminder(self._print, first_s=first_s)

    def __enter__(self) -> Self:
        self._is_shown, self._began = True, time.monotonic()
        if self._bar is not None:
            self._task = self._bar.add_task(escape(f"{self._what} …"), total=None)
            self._bar.start()
        else:
            self._print(f"{self._what} …")
            self._reminder.__enter__()
            self._reminder.wait_for(self._what)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end(succeeded=kind is None)

    def update(self, what: str) -> None:
        """Say what it has come to; off a terminal in the next reminder."""
        if self._bar is not None:
            self._bar.update(self._task, description=escape(f"{what} …"))
        else:
            self._reminder.wait_for(what)

    def stop(self) -> None:
        self._end(succeeded=True)

    def _end(self, *, succeeded: bool) -> None:
        if not self._is_shown:
            return
        self._is_shown = False
        if self._bar is not None:
            self._bar.stop()
            return
        self._reminder.__exit__(None, None, None)
        if succeeded:
            self._print(f"{self._what}: done in {format_minutes(time.monotonic() - self._began)}")

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


def format_minutes(duration_s: float) -> str:
    """1:05, or 2:03:00 from an hour on."""
    minutes, seconds = divmod(round(duration_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
