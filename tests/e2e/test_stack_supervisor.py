"""The supervisor, with cheap stand-ins: starts in order, restarts, stops whole process groups, dies without a trace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from dipole.stack.supervisor import MAX_BACKOFF_S, Program, StartFailed, Supervisor, restart_delay_s

PYTHON = [sys.executable, "-I", "-S", "-c"]
SLEEP = "import time\ntime.sleep(600)"
WITH_CHILD = (
    "import subprocess, sys, time\nsubprocess.Popen(['sleep', '600'])\nprint('up', flush=True)\ntime.sleep(600)"
)
STUBBORN = "import signal, time\nsignal.signal(15, signal.SIG_IGN)\nprint('up', flush=True)\ntime.sleep(600)"


def program(name: str, code: str, **options: object) -> Program:
    return Program(name, [*PYTHON, code], **options)  # type: ignore[arg-type]


def wait_for(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def family(pids: dict[str, int]) -> list[psutil.Process]:
    leaders = [psutil.Process(pid) for pid in pids.values()]
    return leaders + [child for leader in leaders for child in leader.children(recursive=True)]


def gone(processes: list[psutil.Process]) -> bool:
    return all(not each.is_running() or each.status() == psutil.STATUS_ZOMBIE for each in processes)


def test_a_killed_program_is_started_again(tmp_path: Path) -> None:
    """kill -9 of a program brings it back under a new pid, kills what it left behind, and is told."""
    told: list[tuple[str, int]] = []
    with Supervisor(
        tmp_path, [program("a", WITH_CHILD)], on_restart=lambda name, code: told.append((name, code))
    ) as running:
        first = running.pids["a"]
        wait_for(lambda: len(family(running.pids)) == 2, "the child of a")
        old = family(running.pids)
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: running.pids.get("a", first) != first, "a new a")
        assert gone(old)
    assert told == [("a", -signal.SIGKILL)]


def test_leaving_stops_whole_process_groups(tmp_path: Path) -> None:
    """After the with block neither programs nor their children are left, also one that ignores SIGTERM."""
    marks = [program("a", WITH_CHILD), program("b", STUBBORN)]
    with Supervisor(tmp_path, marks, stop_s=2) as running:
        wait_for(lambda: all((tmp_path / f"{name}.log").read_text() == "up\n" for name in "ab"), "both up")
        processes = family(running.pids)
        assert len(processes) == 3
    assert gone(processes)


def test_a_slow_stage_leaves_the_next_its_time(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What ignores SIGTERM is killed, as its log says and the terminal does not; what it stands on ends by itself."""
    mark = tmp_path / "mark"
    graceful = (
        "import pathlib, signal, sys, time\n"
        f"def end(*_):\n    time.sleep(1.5)\n    pathlib.Path({str(mark)!r}).touch()\n    sys.exit()\n"
        "signal.signal(15, end)\nprint('up', flush=True)\ntime.sleep(600)"
    )
    with Supervisor(tmp_path, [program("base", graceful, barrier=True), program("top", STUBBORN)], stop_s=3):
        logs = [tmp_path / f"{name}.log" for name in ("base", "top")]
        wait_for(lambda: all(log.exists() and log.read_text() == "up\n" for log in logs), "both up")
    assert mark.exists()
    assert [("killed" in log.read_text()) for log in logs] == [False, True]
    assert capfd.readouterr() == ("", "")


def test_the_wait_before_a_restart_is_bounded_after_any_number_of_deaths() -> None:
    """A program that died thousands of times is still started again."""
    assert restart_delay_s(1) < restart_delay_s(4) < restart_delay_s(5000) == MAX_BACKOFF_S


def test_a_barrier_starts_in_order(tmp_path: Path) -> None:
    """What comes after a barrier starts only once the barrier is ready."""
    mark = tmp_path / "mark"
    write = f"import pathlib, time\ntime.sleep(1)\npathlib.Path({str(mark)!r}).touch()\ntime.sleep(600)"
    read = f"import pathlib, time\nassert pathlib.Path({str(mark)!r}).exists()\ntime.sleep(600)"
    programs = [program("first", write, ready=mark.exists, barrier=True), program("second", read)]
    with Supervisor(tmp_path, programs) as running:
        time.sleep(0.5)
        assert set(running.pids) == {"first", "second"}


def test_a_program_that_ends_at_start_is_a_clear_error(tmp_path: Path) -> None:
    """The error names the program, its exit code and the tail of its log, and everything else is stopped."""
    started: list[psutil.Process] = []
    supervisor = Supervisor(
        tmp_path,
        [
            program("good", SLEEP, barrier=True),
            program("bad", "import sys\nprint('no such port', file=sys.stderr)\nsys.exit(3)", ready=lambda: False),
        ],
    )
    with pytest.raises(StartFailed, match=r"(?s)bad ended with exit code 3.*no such port.*bad\.log"), supervisor:
        pass
    assert supervisor.pids == {}
    assert gone(started)


def test_a_program_that_is_never_ready_is_a_clear_error(tmp_path: Path) -> None:
    """Readiness has a limit."""
    supervisor = Supervisor(tmp_path, [program("slow", SLEEP, ready=lambda: False)], start_s=1)
    with pytest.raises(StartFailed, match="slow was not ready within 1 s"), supervisor:
        pass


PARENT = """
    import sys, time
    from pathlib import Path
    from dipole.stack.supervisor import Program, Supervisor
    if __name__ == "__main__":
        python = [sys.executable, "-I", "-S", "-c"]
        programs = [Program(name, [*python, "import time; time.sleep(600)"]) for name in ("a", "b")]
        try:
            with Supervisor(Path(sys.argv[1]), programs) as running:
                print(*running.pids.values(), flush=True)
                time.sleep(600)
        except KeyboardInterrupt:
            print("stopped", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_nothing_outlives_the_parent(number: signal.Signals, tmp_path: Path) -> None:
    """Whatever ends the parent, kill -9 included, ends every program."""
    script = tmp_path / "parent.py"
    script.write_text(textwrap.dedent(PARENT))
    with subprocess.Popen([sys.executable, script, tmp_path], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        processes = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(processes) == 2
        parent.send_signal(number)
        parent.wait(60)
        wait_for(lambda: gone(processes), "both dead")
        assert parent.stdout.read() == ("" if number is signal.SIGKILL else "stopped\n")
