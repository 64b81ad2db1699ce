"""Starts a handful of programs, restarts those that die, and stops them all together, whatever happens to us.

    with Supervisor(logs, [Program("redis", ["redis-server", …], ready=…), …]) as running:
        running.pids["redis"]

Every program has a thread that starts it, waits for it and starts it again; a session of its own, so that its whole
process group can be ended and a Ctrl-C on the terminal reaches only us; and a guard, so that it dies with us even when
we are killed (parent_death.py; the kernel ties it to the starting thread, which is why that thread stays).
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
from dipole.private_files import make_private_folder
from dipole.stack import parent_death

log = structlog.get_logger()

STOP_S = 15.0  # between SIGTERM and SIGKILL, for each stage; a reward finishes its requests within 10
MAX_BACKOFF_S = 30.0
STEADY_RUN_S = 60.0  # a program that lived so long starts again at once when it dies
MAX_LOG_BYTES = 16 * 2**20


def restart_delay_s(deaths: int) -> float:
    """How long to wait before a process that died so often in a row is started again."""
    return min(0.25 * 2.0 ** min(deaths, 16), MAX_BACKOFF_S)  # bounded twice: 2.0**1024 is an OverflowError


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


class _ProcessThread(threading.Thread):
    """Keeps one program running."""

    def __init__(self, program: Program, log_file: Path, on_restart: Callable[[str, int], None]) -> None:
        super().__init__(name=f"keep-{program.name}", daemon=True)
        self.program, self.log_file = program, log_file
        self.process: subprocess.Popen[bytes] | None = None
        self.exit_codes: list[int] = []
        self._on_restart = on_restart
        self._stopping = threading.Event()
        self._lock = threading.Lock()

    def run(self) -> None:
        deaths = 0
        while (process := self._spawn()) is not None:
            started = time.monotonic()
            code = process.wait()
            self.exit_codes.append(code)
            self._signal_group(signal.SIGKILL)  # whatever the dead one left behind
            deaths = 1 if time.monotonic() - started > STEADY_RUN_S else deaths + 1
            if self._stopping.wait(restart_delay_s(deaths)):
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
                    umask=0o077,  # what they write is their owner's alone
                )
            return self.process

    def request_stop(self) -> None:
        with self._lock:
            self._stopping.set()
        if self.process is not None and self.process.returncode is None:
            self._signal_group(signal.SIGTERM)

    def wait_stopped(self, until: float) -> None:
        """Wait for the end, force it at `until`."""
        if self.ident is None:
            return
        self.join(max(until - time.monotonic(), 0))
        if self.is_alive():
            with self.log_file.open("a") as output:
                output.write("killed: it had not ended long after SIGTERM\n")
            self._signal_group(signal.SIGKILL)
            self.join()

    def _signal_group(self, number: signal.Signals) -> None:
        if self.process is not None:
            # gone; macOS says EPERM for zombies
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)

    def tail_log(self, lines: int = 25) -> str:
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
        self._threads = [
            _ProcessThread(program, log_dir / f"{program.name}.log", self._on_restart) for program in programs
        ]
        self._previous_handlers: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        make_private_folder(self._log_dir)
        self._catch_signals()
        try:
            waiting: list[_ProcessThread] = []
            for thread in self._threads:
                _rotate_log(thread.log_file)
                thread.start()
                waiting.append(thread)
                if thread.program.barrier:
                    self._wait_ready(waiting)
                    waiting = []
            self._wait_ready(waiting)
        except BaseException:
            self.stop_all()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_all()

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by program; one that is just being restarted is absent."""
        running = {thread.program.name: thread.process for thread in self._threads}
        return {name: process.pid for name, process in running.items() if process and process.returncode is None}

    def stop_all(self) -> None:
        """Stop all, each stage before the barrier it stands on. Signals are ignored meanwhile: it is bounded.

        Each stage has its own time, or one that takes long would have the others killed.
        """
        for number in self._previous_handlers:
            signal.signal(number, signal.SIG_IGN)
        stage: list[_ProcessThread] = []
        for thread in reversed(self._threads):
            if thread.program.barrier:
                _stop_threads(stage, self._stop_s)
                stage = []
            stage.append(thread)
        _stop_threads(stage, self._stop_s)
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous_handlers = {}

    def _catch_signals(self) -> None:
        """SIGTERM and a closed terminal end us as Ctrl-C does, which a script's `&` may have had ignored."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            self._previous_handlers[number] = signal.signal(number, _raise_interrupt)

    def _wait_ready(self, threads: list[_ProcessThread]) -> None:
        until = time.monotonic() + self._start_s
        left = list(threads)
        while left:
            for thread in list(left):
                self._check_running(thread)
                if thread.process is not None and (thread.program.ready is None or thread.program.ready()):
                    left.remove(thread)
            if left and time.monotonic() > until:
                name = left[0].program.name
                raise StartFailed(
                    f"{name} was not ready within {self._start_s:g} s:\n{self._describe_failure(left[0])}"
                )
            if left:
                time.sleep(0.1)
        for thread in threads:
            self._check_running(thread)

    def _check_running(self, thread: _ProcessThread) -> None:
        if thread.exit_codes:
            name, code = thread.program.name, thread.exit_codes[0]
            raise StartFailed(
                f"{name} ended with exit code {code} before it was ready:\n{self._describe_failure(thread)}"
            )

    def _describe_failure(self, thread: _ProcessThread) -> str:
        return f"{thread.tail_log() or '(it wrote nothing)'}\n(from {thread.log_file})"


def _raise_interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _stop_threads(threads: list[_ProcessThread], stop_s: float) -> None:
    until = time.monotonic() + stop_s
    for thread in threads:
        thread.request_stop()
    for thread in threads:
        thread.wait_stopped(until)


def _rotate_log(log_file: Path) -> None:
    """Put a long log aside, one generation."""
    if log_file.exists() and log_file.stat().st_size > MAX_LOG_BYTES:
        log_file.replace(log_file.with_suffix(".log.1"))
