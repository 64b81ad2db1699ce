"""The one place that wires a training run: builds what the spec names, trains, and writes what leaves.

workdir/
  checkpoint-N/      to resume from          evaluation/step-N.json   figures and every score
  samples/step-N.png  fixed prompts, noises   export/                  LoRAs, model card, samples
  candidates/step-N.safetensors               what was ranked, with record_candidates
"""

from __future__ import annotations

from pathlib import Path

from dipole_trainer import features, generators
from dipole_trainer.checkpoints import export
from dipole_trainer.compute.micro_batches import Chunks
from dipole_trainer.distributed.group import World
from dipole_trainer.distributed.launch import join
from dipole_trainer.evaluation.schedule import Evaluations
from dipole_trainer.generators import pipelines
from dipole_trainer.ranking.groups import Ranker
from dipole_trainer.spec import TrainSpec
from dipole_trainer.storage import job_layout
from dipole_trainer.training import interface, loop
from dipole_trainer.training.candidate_recorder import Recorder
from dipole_trainer.training.group_sources import Online, Source
from dipole_trainer.training.offline_sources import Pairs, Replay, Told
from dipole_trainer.training.rollout import Rollout


def run(
    spec: TrainSpec,
    *,
    job_id: str,
    workdir: Path,
    models_dir: Path,
    rank: Ranker,
    on_event: interface.OnEvent,
    control: interface.Control,
    data: Path | None = None,
    world: World | None = None,
) -> interface.Outcome:
    """Train one job to its end, or until `control` stops it; resumes from the newest checkpoint under `workdir`.

    `data` is what an offline job trains on: the pairs file, or the `candidates` folder of the job that is replayed.
    Then `rank` serves evaluations alone; without rewards they give samples and diversity, and no scores.

    Raises RewardUnavailable when a required reward is gone (a checkpoint is written first), InvalidInput when the spec
    names something that is not there, and whatever `control` or `on_event` raises.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    world = world or join()
    if world.leads and (advice := faster(spec, world.device)):
        on_event("slow_precision", {"what": advice})
    _, kind = pipelines.find(spec, models_dir)
    features.locate(spec.features, kind, models_dir=models_dir)  # a pipeline takes minutes to load
    generator = generators.build(spec, models_dir=models_dir, device=world.device)
    spec.check_side(generator.side)
    phi = features.build(spec.features, generator, models_dir=models_dir)
    features.check_fit(phi, generator)
    chunks = Chunks(spec.chunk_size, lambda size: on_event("out_of_memory", {"chunk_size": size}))
    rollout = Rollout(spec, generator, phi, chunks)
    source = _source(spec, rollout, rank, world, job_id, data)
    judge = rank if spec.rewards else Told()
    evaluations = Evaluations(_evaluated(spec), generator, phi, chunks, judge, on_event, workdir, job_id)
    recorder = Recorder(spec, source.rewards, workdir) if spec.record_candidates else None
    trainer = loop.Trainer(
        spec, rollout, source, evaluations, on_event, workdir=workdir, control=control, world=world, recorder=recorder
    )
    outcome = trainer.run()
    if outcome == "succeeded":
        trained = job_layout.newest(workdir)
        assert trained is not None, "a run that succeeded has its last checkpoint"
        for path in export.export(trained, workdir, spec, generator):
            on_event("export", {"step": spec.steps, "path": str(path.relative_to(workdir))})
    return outcome


def faster(spec: TrainSpec, device: str) -> str | None:
    """What to say of a precision that is slow on this device; whoever asks for it for exactness is not overruled."""
    if spec.precision != "fp32" or not device.startswith("cuda"):
        return None
    return "precision fp32 is slow on a GPU: bf16 computes faster, and what is trained stays fp32"


def _source(spec: TrainSpec, rollout: Rollout, rank: Ranker, world: World, job_id: str, data: Path | None) -> Source:
    """Where the job's groups come from."""
    if not spec.offline:
        return Online(spec, rollout, rank, world, job_id)
    assert data is not None, "whoever runs an offline job brings its data"
    return (Pairs if spec.pairs_file is not None else Replay)(spec, rollout, world, job_id, data)


def _evaluated(spec: TrainSpec) -> TrainSpec:
    """The job as evaluations see it: where pairs are trained on, no reward is, whatever its weight; all are watched."""
    if spec.pairs_file is None:
        return spec
    return spec.model_copy(update={"rewards": tuple(each.model_copy(update={"weight": 0.0}) for each in spec.rewards)})
