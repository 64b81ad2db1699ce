"""What a training session reports to trackers, each in a process of its own, so that none can stop or slow the run.

| who                    | waits for                                   | woken by                                   |
|------------------------|---------------------------------------------|--------------------------------------------|
| the session            | nothing; at its end some time, bounded       | the tracker's process, which ends          |
| a tracker's feeder     | records, in a queue of MAX_WAITING          | the session, or the end                    |
| a tracker's listener   | the process's answers                       | each record taken; its end                 |
| the tracker's process  | records; its server, as long as that takes  | the feeder; killed with the session        |

A tracker that fails, hangs or is not installed costs one event `warning`. Nothing is written by these threads: what
they find is told with the session's next event.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from dipole.protocol import job_events
from dipole.protocol.job_events import OnEvent
from dipole_trainer.spec import TrainSpec
from dipole_trainer.storage import job_layout
from dipole_trainer.trackers import figures
from dipole_trainer.trackers.installed import install_advice, list_installed_trackers

log = structlog.get_logger()

MAX_WAITING = 1000  # records that a tracker has not taken
SILENT_S = 120.0  # without an answer after which a tracker is said to be silent
FINISH_TIMEOUT_S = 60.0  # for all trackers together, at the end of a job
STOP_TIMEOUT_S = 10.0  # where a session ends before: orchestrators kill a worker that takes its time

COMMAND = (sys.executable, "-P", "-m", "dipole_trainer.trackers.process")
# A process of its own takes part in no group of processes, computes on no GPU, and knows no secret of ours; and nothing
# is sent anywhere that nobody asked for.
HIDDEN_VARIABLES = ("DIPOLE_", "ACCELERATE_", "TORCHELASTIC_")
GROUP_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
FIXED = {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
DEFAULTS = {
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_DISABLE_CODE": "true",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_CONSOLE": "off",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "DO_NOT_TRACK": "1",
}


@contextlib.contextmanager
def report_to_trackers(
    spec: TrainSpec,
    job_id: str,
    workdir: Path,
    on_event: OnEvent,
    *,
    command: Sequence[str] = COMMAND,
    silent_s: float | None = None,
    finish_timeout_s: float | None = None,
) -> Iterator[OnEvent]:
    """What takes the session's events instead of `on_event`: it gets them all, and trackers what they show of them.

    `command` is the program that is each tracker's process, given the number of this one; the seam for tests.
    """
    if not spec.report_to:
        yield on_event
        return
    reporter = TrackerReporter(
        spec, job_id, workdir, on_event, command=command, silent_s=SILENT_S if silent_s is None else silent_s
    )
    try:
        yield reporter.report
    except BaseException:
        reporter.close(finish_timeout_s)
        raise
    reporter.close(finish_timeout_s)
    reporter.tell_problems()


class TrackerReporter:
    """The trackers of one session. `report` never waits for any of them."""

    def __init__(
        self, spec: TrainSpec, job_id: str, workdir: Path, on_event: OnEvent, *, command: Sequence[str], silent_s: float
    ) -> None:
        self._workdir = workdir
        self._on_event = on_event
        self._silent_s = silent_s
        self._units: dict[str, figures.Unit] | None = None
        self._exported: list[str] = []
        self._absent: dict[str, str] = {}  # why there is no process, until that has been told
        newest = job_layout.newest_checkpoint(workdir)
        begin = {
            "job_id": job_id,
            "workdir": str(workdir.resolve()),
            # the child draws pictures by it, which are of no training prompt's metadata
            "spec": spec.model_copy(update={"prompts": spec.prompts[:1]}).model_dump_json(),
            "config": figures.describe_config(spec),
            "resume_step": job_layout.step_of_checkpoint(newest.name) if newest else None,
        }
        self._trackers: list[TrackerProcess] = []
        installed = list_installed_trackers()
        for name in spec.report_to:
            if name not in installed:
                self._absent[name] = f"it is not installed here; {install_advice(name)}"
                continue
            try:
                tracker = TrackerProcess(
                    name, command, {"tracker": name, **begin}, workdir / job_layout.TRACKERS_FOLDER
                )
            except OSError as error:
                self._absent[name] = f"no process could be started for it: {error}"
            else:
                self._trackers.append(tracker)

    def report(self, kind: str, data: dict[str, Any]) -> None:
        """Hand an event on, and send trackers what they show of it."""
        self._on_event(kind, data)
        if self._units is None and kind in figures.PREFIXES:
            said = [data] if kind == job_events.StepFinished.kind else []
            self._units = figures.measure_units(self._workdir, said)
        if scalars := figures.to_scalars(kind, data, self._units or {}):
            self._send({"scalars": scalars, "step": data["step"]})
        if kind == job_events.SamplesWritten.kind:
            self._send({"samples": data["step"]})
        if kind == job_events.FileExported.kind and (self._workdir / data["path"]).is_file():
            self._exported.append(data["path"])
        self.tell_problems()

    def tell_problems(self) -> None:
        """Report an event for each tracker that something went wrong with, once."""
        while self._absent:
            name, reason = self._absent.popitem()
            self._warn(f"report_to: nothing is reported to {name}, as {reason}")
        for tracker in self._trackers:
            if (problem := tracker.take_problem(self._silent_s)) is not None:
                log.warning("tracker_problem", tracker=tracker.name, problem=problem)
                self._warn(f"report_to: what {tracker.name} shows of this run is not whole, as {problem}")

    def close(self, timeout_s: float | None) -> None:
        """Send what was exported, and let the processes end within `timeout_s`, by default as long as the session's end
        leaves; those that do not are killed.
        """
        if timeout_s is None:
            timeout_s = FINISH_TIMEOUT_S if self._exported else STOP_TIMEOUT_S
        if self._exported:
            self._send({"exported": self._exported})
        for tracker in self._trackers:
            tracker.end()
        deadline = time.monotonic() + timeout_s
        for tracker in self._trackers:
            tracker.wait(deadline, timeout_s)

    def _send(self, record: Mapping[str, Any]) -> None:
        for tracker in self._trackers:
            tracker.send(record)

    def _warn(self, warning: str) -> None:
        job_events.JobWarned(warning=warning).report(self._on_event)


class TrackerProcess:
    """One tracker's process with its feeder and its listener."""

    def __init__(self, name: str, command: Sequence[str], begin: Mapping[str, Any], folder: Path) -> None:
        """`begin` is told to it first; it works in `folder`."""
        self.name = name
        self._queue: queue.Queue[Mapping[str, Any] | None] = queue.Queue(MAX_WAITING)
        self._unanswered: deque[float] = deque([time.monotonic()])  # when each record was sent; the first is `begin`
        self._problem: str | None = None
        self._has_told = False
        folder.mkdir(parents=True, exist_ok=True)
        # by this thread: on Linux a process ends with the thread that started it
        self._process = subprocess.Popen(  # noqa: S603 (our own command)
            [*command, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=_environment(),
            start_new_session=True,  # Ctrl-C is the session's, which lets it end
        )
        self._queue.put(begin)
        for target in (self._feed, self._listen):
            threading.Thread(target=target, name=f"tracker {name}", daemon=True).start()

    def send(self, record: Mapping[str, Any]) -> None:
        """Queue a record; it is dropped where the tracker is too far behind."""
        self._unanswered.append(time.monotonic())
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self._unanswered.pop()
            self._set_problem(f"it is {MAX_WAITING} reports behind, and later ones are dropped")

    def take_problem(self, silent_s: float) -> str | None:
        """What went wrong, in a clause; None where nothing did, or where it has been taken."""
        with contextlib.suppress(IndexError):  # the listener may take the last one meanwhile
            if self._process.poll() is None and time.monotonic() - self._unanswered[0] > silent_s:
                self._set_problem(f"it has not answered for {silent_s:g} s")
        if self._problem is None or self._has_told:
            return None
        self._has_told = True
        return self._problem

    def end(self) -> None:
        """Let it finish what it has."""
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            self._kill()

    def wait(self, deadline: float, timeout_s: float) -> None:
        """Wait until it has ended, or kill it at `deadline`."""
        try:
            code = self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._set_problem(f"it did not finish within {timeout_s:g} s")
            self._kill()
            return
        if code:
            self._set_problem(f"its process ended with code {code}")

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # with what it started itself
        self._process.wait()

    def _feed(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError), self._process.stdin as pipe:  # it has ended, which `wait` tells
            while (record := self._queue.get()) is not None:
                pipe.write(json.dumps(record).encode() + b"\n")
                pipe.flush()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as answers:
            for line in answers:
                if (failure := json.loads(line).get("failed")) is not None:
                    self._set_problem(failure)
                else:
                    with contextlib.suppress(IndexError):
                        self._unanswered.popleft()

    def _set_problem(self, problem: str) -> None:
        """The first one counts: others follow from it."""
        self._problem = self._problem or problem


def _environment() -> dict[str, str]:
    """The worker's own environment, with what trackers are set by, and without what is not theirs."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(HIDDEN_VARIABLES) and name not in GROUP_VARIABLES
    }
    if not ({"WANDB_MODE", "WANDB_API_KEY"} & inherited.keys()):
        inherited["WANDB_MODE"] = "offline"
    return {**DEFAULTS, **inherited, **FIXED}
