"""Starts a handful of programs, restarts those that die, and stops them all together, whatever happens to us.

    with Supervisor(logs, [Program("redis", ["redis-server", …], ready=…), …]) as running:
        running.pids["redis"]

Every program has a thread that starts it, waits for it and starts it again; a session of its own, so that its whole
process group can be ended and a Ctrl-C on the terminal reaches only us; and a guard, so that it dies with us even when
we are killed (guard.py; the kernel ties it to the starting thread, which is why that thread stays).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from dipole.errors import DipoleError
from dipole.stack import parent_death

log = structlog.get_logger()

STOP_S = 10.0  # between SIGTERM and SIGKILL
MAX_BACKOFF_S = 30.0
STEADY_S = 60.0  # a program that lived so long starts again at once when it dies
MAX_LOG_BYTES = 16 * 2**20


class StartFailed(DipoleError):
    """A program ended, or was not ready in time; the message ends with the tail of its log."""

    slug = "start-failed"


@dataclass(frozen=True)
class Program:
    """A command to keep running. `ready` says whether it does its work yet; None means as soon as it runs.

    Programs start in order, each once the one before is ready when `barrier` is set; they stop in reverse stages.
    """

    name: str
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    ready: Callable[[], bool] | None = None
    url: str = ""
    barrier: bool = False


class _Keeper(threading.Thread):
    """Keeps one program running."""

    def __init__(self, program: Program, log_file: Path, on_restart: Callable[[str, int], None]) -> None:
        super().__init__(name=f"keep-{program.name}", daemon=True)
        self.program, self.log_file = program, log_file
        self.process: subprocess.Popen[bytes] | None = None
        self.exits: list[int] = []
        self._on_restart = on_restart
        self._stopping = threading.Event()
        self._lock = threading.Lock()

    def run(self) -> None:
        deaths = 0
        while (process := self._spawn()) is not None:
            started = time.monotonic()
            code = process.wait()
            self.exits.append(code)
            self._signal_group(signal.SIGKILL)  # whatever the dead one left behind
            deaths = 1 if time.monotonic() - started > STEADY_S else deaths + 1
            if self._stopping.wait(min(0.25 * 2**deaths, MAX_BACKOFF_S)):
                return
            self._on_restart(self.program.name, code)

    def _spawn(self) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self._stopping.is_set():
                return None
            with self.log_file.open("ab") as output:
                self.process = subprocess.Popen(  # noqa: S603 (our own commands)
                    [sys.executable, "-I", "-S", parent_death.__file__, str(os.getpid()), *self.program.command],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **self.program.env},
                    start_new_session=True,
                )
            return self.process

    def terminate(self) -> None:
        with self._lock:
            self._stopping.set()
        if self.process is not None and self.process.returncode is None:
            self._signal_group(signal.SIGTERM)

    def finish(self, until: float) -> None:
        """Wait for the end, force it at `until`."""
        if self.ident is None:
            return
        self.join(max(until - time.monotonic(), 0))
        if self.is_alive():
            log.warning("killed", program=self.program.name)
            self._signal_group(signal.SIGKILL)
            self.join()

    def _signal_group(self, number: signal.Signals) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # gone; macOS says EPERM for zombies
                os.killpg(self.process.pid, number)

    def tail(self, lines: int = 25) -> str:
        with self.log_file.open("rb") as file:
            file.seek(max(0, self.log_file.stat().st_size - 16384))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])


class Supervisor:
    """Use as a context manager, from the main thread. `on_restart(name, exit code)` is told of every restart."""

    def __init__(
        self,
        log_dir: Path,
        programs: Sequence[Program],
        *,
        start_s: float = 120.0,
        stop_s: float = STOP_S,
        on_restart: Callable[[str, int], None] | None = None,
    ) -> None:
        self._start_s, self._stop_s = start_s, stop_s
        self._log_dir = log_dir
        self._on_restart = on_restart or (lambda name, code: log.warning("restarted", program=name, exit_code=code))
        self._keepers = [_Keeper(program, log_dir / f"{program.name}.log", self._on_restart) for program in programs]
        self._handlers: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        self._log_dir.mkdir(parents=True, exist_ok=True)
        self._catch_signals()
        try:
            waiting: list[_Keeper] = []
            for keeper in self._keepers:
                _roll(keeper.log_file)
                keeper.start()
                waiting.append(keeper)
                if keeper.program.barrier:
                    self._await(waiting)
                    waiting = []
            self._await(waiting)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by program; one that is just being restarted is absent."""
        running = {keeper.program.name: keeper.process for keeper in self._keepers}
        return {name: process.pid for name, process in running.items() if process and process.returncode is None}

    def stop(self) -> None:
        """Stop all, each stage before the barrier it stands on. Signals are ignored meanwhile: it is bounded."""
        for number in self._handlers:
            signal.signal(number, signal.SIG_IGN)
        until = time.monotonic() + self._stop_s
        stage: list[_Keeper] = []
        for keeper in reversed(self._keepers):
            if keeper.program.barrier:
                _end(stage, max(until, time.monotonic() + 1))
                stage = []
            stage.append(keeper)
        _end(stage, max(until, time.monotonic() + 1))
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._handlers = {}

    def _catch_signals(self) -> None:
        """SIGTERM and a closed terminal end us as Ctrl-C does, which a script's `&` may have had ignored."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            self._handlers[number] = signal.signal(number, _interrupt)

    def _await(self, keepers: list[_Keeper]) -> None:
        until = time.monotonic() + self._start_s
        left = list(keepers)
        while left:
            for keeper in list(left):
                self._check(keeper)
                if keeper.process is not None and (keeper.program.ready is None or keeper.program.ready()):
                    left.remove(keeper)
            if left and time.monotonic() > until:
                name = left[0].program.name
                raise StartFailed(f"{name} was not ready within {self._start_s:g} s:\n{self._said(left[0])}")
            if left:
                time.sleep(0.1)
        for keeper in keepers:
            self._check(keeper)

    def _check(self, keeper: _Keeper) -> None:
        if keeper.exits:
            name, code = keeper.program.name, keeper.exits[0]
            raise StartFailed(f"{name} ended with exit code {code} before it was ready:\n{self._said(keeper)}")

    def _said(self, keeper: _Keeper) -> str:
        return f"{keeper.tail() or '(it wrote nothing)'}\n(from {keeper.log_file})"


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _end(keepers: list[_Keeper], until: float) -> None:
    for keeper in keepers:
        keeper.terminate()
    for keeper in keepers:
        keeper.finish(until)


def _roll(log_file: Path) -> None:
    """Put a long log aside, one generation."""
    if log_file.exists() and log_file.stat().st_size > MAX_LOG_BYTES:
        log_file.replace(log_file.with_suffix(".log.1"))
