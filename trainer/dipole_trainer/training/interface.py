"""What a training session is to whoever runs it: how it is called and how it ends. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol

from dipole.protocol.job_events import OnEvent
from dipole_trainer.ranking.groups import Ranker
from dipole_trainer.ranking.weight_changes import WeightChange
from dipole_trainer.spec import TrainSpec

RunOutcome = Literal["succeeded", "paused", "cancelled"]
RunControl = Callable[[], Literal["run", "pause", "cancel"]]
TakeWeightChanges = Callable[[int], Sequence[WeightChange]]
"""Every change of weights so far; those that no step began with yet get this one, which is stored before it returns."""


def no_weight_changes(step: int) -> Sequence[WeightChange]:
    """Of a run whose weights nobody changes, and of all processes but the first, which hear of them from it."""
    return ()


class RunSession(Protocol):
    """dipole_trainer.training.session.run_session: trains a job to its end, or until `control` stops it."""

    def __call__(
        self,
        spec: TrainSpec,
        *,
        job_id: str,
        workdir: Path,
        models_dir: Path,
        ranker: Ranker,
        on_event: OnEvent,
        control: RunControl,
        data: Path | None,
        candidates_max_gib: float,
        take_weight_changes: TakeWeightChanges,
    ) -> RunOutcome: ...
