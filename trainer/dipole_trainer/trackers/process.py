"""A tracker's process: records from the session on stdin, a line each as JSON; an answer to each on stdout.

    {"tracker": "mlflow", "job_id": ..., "workdir": ..., "spec": ..., "config": ..., "resume_step": ...}     the first
    {"scalars": {"train/loss": 0.1}, "step": 3}    {"samples": 3}    {"exported": ["export/…safetensors"]}
    -> {"done": true}   or   {"failed": "..."} where the tracker raised; it goes on with the next record

It ends when stdin does, and is killed with the process whose number it is given. What trackers print is dropped.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from dipole.stack import parent_death

MAX_FAILURE_CHARS = 500


def main() -> None:
    parent_death.die_with_parent(int(sys.argv[1]))
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    begin = json.loads(sys.stdin.buffer.readline() or "null")
    if begin is None:
        return
    # heavy: `begin` is there by now, or nobody will send it
    from dipole_trainer.trackers.backends import open_tracker

    tracker = _answer(answers, "starting", lambda: open_tracker(begin))
    if tracker is None:
        return
    for line in sys.stdin.buffer:
        record = json.loads(line)
        _answer(answers, _describe(record), partial(_take_record, tracker, record, Path(begin["workdir"])))
    _answer(answers, "finishing", tracker.finish)


def _answer(answers: TextIO, doing: str, call: Callable[[], Any]) -> Any:
    """What `call` returns, and None where it raised; said either way."""
    said: dict[str, Any]
    try:
        found, said = call(), {"done": True}
    except Exception as error:
        found, said = None, {"failed": f"{doing} failed: {type(error).__name__}: {error}"[:MAX_FAILURE_CHARS]}
    answers.write(json.dumps(said) + "\n")
    answers.flush()
    return found


def _describe(record: Mapping[str, Any]) -> str:
    if "exported" in record:
        return "the export"
    return f"step {record['step']}" if "scalars" in record else f"the pictures of step {record['samples']}"


def _take_record(tracker: Any, record: Mapping[str, Any], workdir: Path) -> None:
    if "scalars" in record:
        tracker.log_scalars(record["scalars"], int(record["step"]))
    elif "samples" in record:
        tracker.log_samples(int(record["samples"]))
    else:
        tracker.log_files([workdir / path for path in record["exported"]])


if __name__ == "__main__":
    main()
