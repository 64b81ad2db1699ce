"""The one place that wires a training run: builds what the spec names, trains, and writes what leaves.

workdir/
  checkpoint-N/      to resume from          evaluation/step-N.json   figures and every score
  samples/step-N.png  fixed prompts, noises   export/                  the LoRA in diffusers format
"""

from __future__ import annotations

from pathlib import Path

import torch

from dipole_trainer import checkpoint, features, generators, loop
from dipole_trainer.export import export_lora
from dipole_trainer.groups import Ranker
from dipole_trainer.spec import TrainSpec


def run(
    spec: TrainSpec,
    *,
    job_id: str,
    workdir: Path,
    rank: Ranker,
    on_event: loop.OnEvent,
    control: loop.Control,
    device: str | None = None,
) -> loop.Outcome:
    """Train one job to its end, or until `control` stops it; resumes from the newest checkpoint under `workdir`.

    Raises RewardUnavailable when a required reward is gone (a checkpoint is written first), InvalidInput when the spec
    names something that is not there, and whatever `control` or `on_event` raises.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    generator = generators.build(spec, device=chosen)
    phi = features.build(spec.features, spec.model, device=chosen)
    outcome = loop.train(spec, generator, phi, rank, on_event, workdir=workdir, job_id=job_id, control=control)
    if outcome == "succeeded":
        trained = checkpoint.newest(workdir)
        assert trained is not None, "a run that succeeded has its last checkpoint"
        path = export_lora(trained, workdir / "export", spec)
        on_event("export", {"step": spec.steps, "path": str(path.relative_to(workdir))})
    return outcome
