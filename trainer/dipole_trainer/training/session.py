"""The one place that wires a training run: builds what the spec names, trains, and writes what leaves.

workdir/
  checkpoint-N/      to resume from          evaluation/step-N.json   figures and every score
  samples/step-N.png  fixed prompts, noises   export/                  LoRAs, model card, base beside final, curves
  candidates/step-N.safetensors               what was ranked, with record_candidates
  trackers/                                   files of the trackers that `report_to` names
  initial/           of a job that starts from a checkpoint: its weights, put there before
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dipole.protocol import job_events
from dipole.protocol.job_events import OnEvent
from dipole_trainer import features, generators
from dipole_trainer.checkpoints import export, resume_state
from dipole_trainer.compute import gpu
from dipole_trainer.compute.graph_budget import GraphBudget, choose_budget, free_gpu_bytes
from dipole_trainer.compute.micro_batches import MicroBatches
from dipole_trainer.distributed.group import ProcessGroup
from dipole_trainer.distributed.launch import current_group
from dipole_trainer.evaluation import pictures
from dipole_trainer.evaluation.schedule import EvaluationSchedule
from dipole_trainer.generators.images import vae
from dipole_trainer.generators.one_step import DTYPES, OneStepGenerator
from dipole_trainer.ranking.forwarding.decoder_check import DecoderCheck
from dipole_trainer.ranking.forwarding.sent_as import LatentsReporter
from dipole_trainer.ranking.forwarding.unverified import UnverifiedRewardReporter
from dipole_trainer.ranking.groups import Ranker
from dipole_trainer.ranking.known_answers import KnownAnswersRanker
from dipole_trainer.ranking.weight_changes import RewardSchedule
from dipole_trainer.spec import PromptSpec, TrainSpec
from dipole_trainer.storage import job_layout
from dipole_trainer.trackers.reporter import report_to_trackers
from dipole_trainer.training import interface, loop
from dipole_trainer.training.candidate_recorder import CandidateRecorder
from dipole_trainer.training.group_sources import GroupSource, OnlineSource
from dipole_trainer.training.offline_sources import PairsSource, ReplaySource
from dipole_trainer.training.precision import HasBf16, choose_precision, precision_advice
from dipole_trainer.training.rollout import Rollout
from dipole_trainer.weights import feature_weights, pipelines, reward_decoder


def run_session(
    spec: TrainSpec,
    *,
    job_id: str,
    workdir: Path,
    models_dir: Path,
    ranker: Ranker,
    on_event: OnEvent,
    control: interface.RunControl,
    data: Path | None = None,
    candidates_max_gib: float = math.inf,
    take_weight_changes: interface.TakeWeightChanges = interface.no_weight_changes,
    processes: ProcessGroup | None = None,
    has_bf16: HasBf16 = gpu.supports_bf16,
) -> interface.RunOutcome:
    """Train one job to its end, or until `control` stops it; resumes from the newest checkpoint under `workdir`.

    `data` is what an offline job trains on: the pairs file, or the `candidates` folder of the job that is replayed.
    Then `ranker` serves evaluations alone; without rewards they give samples and diversity, and no scores.

    `take_weight_changes` is asked on rank 0 before each step for the weights that were changed since the job was made.
    `has_bf16` tells of a device whether it computes in bf16 itself.

    Raises RewardUnavailable when a required reward is gone (a checkpoint is written first), InvalidInput when the spec
    names something that is not there, and whatever `control` or `on_event` raises.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    processes = processes or current_group()
    if not processes.is_main:
        spec = spec.model_copy(update={"report_to": ()})  # rank 0 alone reports
    with report_to_trackers(spec, job_id, workdir, on_event) as on_event:
        if processes.is_main and (advice := precision_advice(spec, processes.device, has_bf16)):
            job_events.PrecisionIsSlow(what=advice).report(on_event)
        spec = choose_precision(spec, workdir, processes, on_event, has_bf16)
        found = pipelines.find_pipeline(spec, models_dir)
        # a pipeline takes minutes to load
        feature_weights.locate_feature_weights(spec.features, found.kind, models_dir)
        if spec.reward_decoder == "tiny":
            reward_decoder.check_decoder_is_used(spec, feature_weights.resolve_space(spec.features, found.kind))
            reward_decoder.locate_tiny_decoder(found.kind, models_dir)
        generator = generators.build_generator(
            spec, models_dir=models_dir, device=processes.device, initial=workdir / job_layout.INITIAL_FOLDER
        )
        spec.check_side(generator.side)
        spec.check_window(generator.side, candidates_max_gib)
        phi = features.build_features(spec.features, generator, models_dir=models_dir)
        features.check_features_fit(phi, generator)
        tiny_decoder = _load_tiny_decoder(spec, generator, models_dir)
        graphs = GraphBudget(
            choose_budget(spec, free_gpu_bytes(processes.device)), lambda: job_events.GraphsGivenUp().report(on_event)
        )
        micro_batches = MicroBatches(
            spec.chunk_size,
            lambda size: job_events.MemoryRanOut(chunk_size=size).report(on_event),
            free_memory=graphs.give_up,
        )
        rollout = Rollout(spec, generator, phi, micro_batches, graphs, tiny_decoder)
        if tiny_decoder is not None:
            sides = spec.method.settings.sides(spec.candidates)
            ranker = DecoderCheck(ranker, spec.rewards, sides, on_event)
        if processes.is_main:
            ranker = LatentsReporter(ranker, on_event)
            ranker = UnverifiedRewardReporter(
                ranker,
                unverified=workdir / job_layout.UNVERIFIED_REWARDS_FILE,
                verified=workdir / job_layout.VERIFIED_REWARDS_FILE,
                on_event=on_event,
            )
        schedule = RewardSchedule(spec.rewards)
        source = _build_source(spec, rollout, ranker, processes, job_id, data, schedule)
        # a run that is resumed has said it
        if processes.is_main and job_layout.newest_checkpoint(workdir) is None:
            _report_model_limits(generator, [*source.prompts, *spec.evaluation.prompts], on_event)
        judge = ranker if spec.rewards else KnownAnswersRanker()
        evaluations = EvaluationSchedule(
            pictures.evaluation_spec(spec),
            generator,
            phi,
            micro_batches,
            judge,
            on_event,
            workdir,
            job_id,
            source.prompts,
            None if spec.is_offline else schedule,
        )
        recorder = CandidateRecorder(spec, workdir, generator.precision) if spec.record_candidates else None
        trainer = loop.Trainer(
            spec,
            rollout,
            source,
            evaluations,
            on_event,
            workdir=workdir,
            control=control,
            processes=processes,
            recorder=recorder,
            schedule=schedule,
            take_weight_changes=take_weight_changes,
        )
        outcome = trainer.run()
        if outcome == "succeeded":
            stop = trainer.early_stop
            step = spec.steps if stop is None else stop.kept
            if stop is not None:
                told = job_events.StoppedEarly(step=stop.step, steps=spec.steps, kept=step, reason=stop.reason())
                told.report(on_event)
            trained = workdir / job_layout.checkpoint_name(step)
            draw_pictures = partial(pictures.draw_pictures, workdir, pictures.evaluation_spec(spec), last=step)
            written = export.export_checkpoint(
                trained, workdir, spec, generator, draw_pictures, weight_changes=schedule.changes
            )
            for path in written:
                job_events.FileExported(step=step, path=str(path.relative_to(workdir))).report(on_event)
            if stop is not None:
                # last: whoever dies before goes on from the newest, and stops there again
                resume_state.remove_checkpoints_after(workdir, step)
                job_events.CheckpointWritten(step=step, path=trained.name).report(on_event)
        return outcome


def _report_model_limits(generator: OneStepGenerator, prompts: Sequence[PromptSpec], on_event: OnEvent) -> None:
    """What the model does otherwise than its folder or the prompts say."""
    if generator.schedule_change is not None:
        job_events.SchedulerChanged(what=generator.schedule_change).report(on_event)
    texts = {each.prompt for each in prompts}
    if (cut := generator.find_cut_prompts(each.prompt for each in prompts)) is not None:
        job_events.PromptsCut(
            count=cut.count, prompts=len(texts), limit=cut.limit, example=cut.example, unread=cut.unread
        ).report(on_event)


def _load_tiny_decoder(spec: TrainSpec, generator: OneStepGenerator, models_dir: Path) -> Any:
    """What decodes for the rewards in the VAE's place; None where the VAE does."""
    if spec.reward_decoder == "vae":
        return None
    folder = reward_decoder.locate_tiny_decoder(generator.kind, models_dir)
    return vae.load_tiny_decoder(folder, DTYPES[generator.precision], generator.device)


def _build_source(
    spec: TrainSpec,
    rollout: Rollout,
    ranker: Ranker,
    processes: ProcessGroup,
    job_id: str,
    data: Path | None,
    schedule: RewardSchedule,
) -> GroupSource:
    """Where the job's groups come from."""
    if not spec.is_offline:
        return OnlineSource(spec, rollout, ranker, processes, job_id, schedule)
    assert data is not None, "whoever runs an offline job brings its data"
    return (PairsSource if spec.pairs_file is not None else ReplaySource)(spec, rollout, processes, job_id, data)
