"""What each step's event says, in the job's folder too: `metrics.jsonl`, a line a step, from which curves are drawn.

A run that goes on from a checkpoint drops the lines of later steps, and one that a crash cut short, and writes its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dipole.whole_files import replacing
from dipole_trainer.storage import job_layout


class MetricsLog:
    """Of one run. Its lines are those of the steps done, in order."""

    def __init__(self, workdir: Path) -> None:
        self.path = workdir / job_layout.METRICS_FILE

    def append_step(self, data: Mapping[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(data) + "\n")

    def remove_steps_after(self, step: int) -> None:
        """Whole or not at all."""
        kept = [line for line in self.read_steps() if line["step"] <= step]
        with replacing(self.path) as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def read_steps(self) -> Iterator[dict[str, Any]]:
        """What each step said, as far as it is whole."""
        for line in self.path.read_text().splitlines() if self.path.is_file() else ():
            try:
                yield json.loads(line)
            except ValueError:
                return  # cut short: the last one
