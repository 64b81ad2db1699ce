"""The one place that wires a training run: builds what the spec names, trains, and writes what leaves.

workdir/
  checkpoint-N/      to resume from          evaluation/step-N.json   figures and every score
  samples/step-N.png  fixed prompts, noises   export/                  LoRAs, model card, samples
"""

from __future__ import annotations

from pathlib import Path

from dipole_trainer import checkpoint, export, features, generators, loop
from dipole_trainer.chunks import Chunks
from dipole_trainer.evaluations import Evaluations
from dipole_trainer.groups import Ranker
from dipole_trainer.rollout import Rollout
from dipole_trainer.sources import Online
from dipole_trainer.spec import TrainSpec
from dipole_trainer.world import World, join


def run(
    spec: TrainSpec,
    *,
    job_id: str,
    workdir: Path,
    models_dir: Path,
    rank: Ranker,
    on_event: loop.OnEvent,
    control: loop.Control,
    world: World | None = None,
) -> loop.Outcome:
    """Train one job to its end, or until `control` stops it; resumes from the newest checkpoint under `workdir`.

    Raises RewardUnavailable when a required reward is gone (a checkpoint is written first), InvalidInput when the spec
    names something that is not there, and whatever `control` or `on_event` raises.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    world = world or join()
    generator = generators.build(spec, models_dir=models_dir, device=world.device)
    phi = features.build(spec.features, generator, models_dir=models_dir)
    chunks = Chunks(spec.chunk_size, lambda size: on_event("out_of_memory", {"chunk_size": size}))
    rollout = Rollout(spec, generator, phi, chunks)
    source = Online(spec, rollout, rank, world, job_id)
    evaluations = Evaluations(spec, generator, phi, rank, on_event, workdir, job_id)
    trainer = loop.Trainer(spec, rollout, source, evaluations, on_event, workdir=workdir, control=control, world=world)
    outcome = trainer.run()
    if outcome == "succeeded":
        trained = checkpoint.newest(workdir)
        assert trained is not None, "a run that succeeded has its last checkpoint"
        for path in export.export(trained, workdir, spec, generator):
            on_event("export", {"step": spec.steps, "path": str(path.relative_to(workdir))})
    return outcome
