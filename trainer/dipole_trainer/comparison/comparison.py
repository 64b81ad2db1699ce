"""Several models side by side: the same prompts and noises for each, every reward, and what surely differs.

`dipole eval` runs this in a process of its own, with the platform's settings: no job, no queue of jobs. Rankings go the
way of a job's, through Redis and the rank workers. A reward that fails costs its scores: they are null, and counted.
The first model is the baseline that differences and win rates are against.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from dipole.errors import InvalidInput
from dipole.protocol.validation import first_error
from dipole.settings import PlatformSettings
from dipole.whole_files import replacing
from dipole_trainer.comparison import inputs, table
from dipole_trainer.comparison.model_loader import ModelLoader
from dipole_trainer.database.engine import Database
from dipole_trainer.evaluation import contact_sheet, scoring, statistics
from dipole_trainer.evaluation.results import ScoredPrompt
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.jobs.store import JobStore
from dipole_trainer.jsonable import to_jsonable
from dipole_trainer.ranking.celery_ranker import CeleryRanker, ResolvedReward
from dipole_trainer.ranking.forwarding.forwarding_ranker import ForwardingRanker
from dipole_trainer.ranking.groups import CandidateGroup, RankedGroup, Ranker
from dipole_trainer.registry.files import FileRegistry
from dipole_trainer.registry.model_names import ModelRef, ModelResolver
from dipole_trainer.registry.rewards import RewardRegistry
from dipole_trainer.seeds import derive_seeds
from dipole_trainer.spec import EvalSpec, FeaturesSpec
from dipole_trainer.storage.artifacts import ArtifactStore

ORDINAL_REASON = "it only ranks, and ranks of one prompt's images compare with no others"

# model's label, images drawn and prompts ranked so far, over all models
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ModelEvaluation:
    """One model's results, in the order of the prompts; images (K, H, W, 3) of the first few."""

    model: ModelRef
    scored: Sequence[ScoredPrompt]
    images: Sequence[NDArray[np.uint8]]
    missing: Mapping[str, Mapping[str, int]]  # reward: why it gave an image no score: how many images
    seconds: float


# ---- the evaluation -------------------------------------------------------------------------------------------------


class ObservedRanker(ForwardingRanker):
    """Counts images and prompts over all models, and missing scores of the present one."""

    def __init__(self, ranker: Ranker, on_progress: OnProgress) -> None:
        super().__init__(ranker)
        self.on_progress = on_progress
        self.label, self.drawn, self.ranked = "", 0, 0
        self.missing: dict[str, Counter[str]] = {}
        self.revisions: dict[str, dict[str, str]] = {}  # which model and revision each reward answered with

    def begin_model(self, label: str) -> None:
        self.label, self.missing = label, {}

    def submit(self, group: CandidateGroup) -> None:
        super().submit(group)
        self.drawn += len(group.images)
        self.on_progress(self.label, self.drawn, self.ranked)

    def collect(self, timeout_s: float) -> RankedGroup | None:
        answer = super().collect(timeout_s)
        if answer is not None:
            self.ranked += 1
            self._count_missing(answer)
            self.on_progress(self.label, self.drawn, self.ranked)
        return answer

    def _count_missing(self, answer: RankedGroup) -> None:
        for name, result in answer.results.items():
            for index, score in enumerate(result.scores):
                if score is None or result.ordinal:
                    why = result.failure or result.errors.get(index) or "no score"
                    self.missing.setdefault(name, Counter())[why if score is None else ORDINAL_REASON] += 1
            if result.failure is None:
                said = ("model", "model_revision", "recipe_version")
                self.revisions[name] = {each: getattr(result, each) for each in said}


class Comparison:
    """One evaluation, ready to run; every part of it has been found and checked. A context manager."""

    def __init__(
        self,
        model_loader: ModelLoader,
        spec: EvalSpec,
        rewards: Sequence[ResolvedReward],
        ranker: Ranker,
        trained: Sequence[str] = (),
        cleanup: contextlib.ExitStack | None = None,
    ) -> None:
        """`trained` names rewards that all but the baseline were trained on, beside those known of their jobs."""
        self.model_loader, self.spec, self.rewards, self.ranker, self.trained = (
            model_loader,
            spec,
            rewards,
            ranker,
            trained,
        )
        self._cleanup = cleanup or contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.close()

    def run(
        self, on_progress: OnProgress = lambda label, drawn, ranked: None
    ) -> tuple[dict[str, Any], Sequence[ModelEvaluation]]:
        """Evaluate one model after the other; the report, and what it was made from."""
        name = f"eval-{secrets.token_hex(8)}"  # no ranking of an earlier evaluation is taken for this one's
        observed = ObservedRanker(self.ranker, on_progress)
        found: list[ModelEvaluation] = []
        notes: list[str] = []
        for number, model in enumerate(self.model_loader.models):
            began = time.monotonic()
            observed.begin_model(model.label)
            with self.model_loader.loaded(model) as (generator, phi):
                notes += _model_notes(model, generator, self.spec)
                scored, images = scoring.score_prompts(
                    self.spec,
                    generator,
                    phi,
                    observed,
                    step=model.step or 0,
                    job_id=f"{name}.{number}",
                    micro_batches=self.model_loader.micro_batches,
                )
            missing = {reward: dict(reasons.most_common()) for reward, reasons in observed.missing.items()}
            found.append(ModelEvaluation(model, scored, images, missing, time.monotonic() - began))
        more = {
            "features": self.model_loader.space,
            "precision": self.model_loader.precision,
            "device": self.model_loader.device,
            "rewards": [
                {"name": each.spec.name, "url": each.endpoint.url, **observed.revisions.get(each.spec.name, {})}
                for each in self.rewards
            ],
        }
        names = [each.spec.name for each in self.rewards]
        said = build_report(found, self.spec, names, trained=self.trained, more=more)
        said["notes"] += notes
        if (size := self.model_loader.micro_batches.size) < scoring.MAX_BATCH_IMAGES:
            said["notes"].append(f"memory ran out, so that in the end {size} images were worked on at once")
        return said, found


def _model_notes(model: ModelRef, generator: OneStepGenerator, spec: EvalSpec) -> Iterator[str]:
    """What the model does otherwise than its folder or the prompts say."""
    if generator.schedule_change is not None:
        yield f"{model.label}: {generator.schedule_change}"
    if (cut := generator.find_cut_prompts(each.prompt for each in spec.prompts)) is not None:
        yield f"{model.label}: {cut.count} of {len(spec.prompts)} prompts are longer than it reads: {cut}"


def prepare_comparison(
    settings: PlatformSettings,
    *,
    models: Sequence[str],
    prompts: str,
    rewards: Sequence[str],
    images: int = 4,
    seed: int = 1234,
    limit: int | None = None,
    features: str = "auto",
    trained: Sequence[str] = (),
    device: str | None = None,
    precision: str | None = None,
    timeout_s: float = 300.0,
    transport: httpx.BaseTransport | None = None,
) -> Comparison:
    """Find and check all that was asked for. Raises InvalidInput, RewardUnavailable or ConfigurationError."""
    with contextlib.ExitStack() as cleanup:
        database = Database(settings.database_url)
        cleanup.callback(database.close)
        artifacts = ArtifactStore(settings.artifacts_url, settings.home / "work")
        lines = inputs.read_prompts(prompts, FileRegistry(database), artifacts, limit)
        resolved = inputs.resolve_rewards(rewards, settings, RewardRegistry(database), timeout_s)
        unknown = [name for name in trained if name not in {each.spec.name for each in resolved}]
        if unknown:
            raise InvalidInput(f"--trained {unknown[0]} is none of the rewards given with --reward", field="trained")
        inputs.check_rewards_ready(resolved, transport, tls_dir=settings.tls_dir)
        inputs.check_rank_worker(settings)
        scratch = settings.home / "work"
        scratch.mkdir(parents=True, exist_ok=True)
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="eval-", dir=scratch)))
        named = ModelResolver(JobStore(database), artifacts, settings.models_dir, folder).resolve_models(models)
        model_loader = ModelLoader(
            named, _features_spec(features), models_dir=settings.models_dir, device=device, precision=precision
        )
        model_loader.check_models()
        ranker = CeleryRanker(settings, "eval", resolved)
        cleanup.callback(ranker.close)
        # Not validated again: how many prompts a job may be evaluated on is a job's affair.
        spec = EvalSpec(images_per_prompt=images, seed=seed).model_copy(update={"prompts": tuple(lines)})
        return Comparison(model_loader, spec, resolved, ranker, trained, cleanup.pop_all())


def _features_spec(kind: str) -> FeaturesSpec:
    try:
        return FeaturesSpec.model_validate({"type": kind})
    except ValidationError as error:
        raise InvalidInput(f"--features {kind}: {first_error(error).message}", field="features") from error


# ---- what is said of it ---------------------------------------------------------------------------------------------


def build_report(
    found: Sequence[ModelEvaluation],
    spec: EvalSpec,
    rewards: Sequence[str],
    *,
    trained: Sequence[str] = (),
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything there is to say, as JSON; `more` is laid beside. `trained` holds for all but the baseline."""
    first = found[0]
    models, notes = [], []
    for each in found:
        figure = statistics.summarize_scores(each.scored, first.scored if each is not first else None)
        weights = {**(dict.fromkeys(trained, 1.0) if each is not first else {}), **each.model.trained_rewards}
        mine = {name: weights[name] for name in rewards if name in weights}
        held_out = [name for name in rewards if name not in mine]
        hacked = (
            statistics.reward_hacking(figure, mine, held_out, than=first.model.label) if each is not first else None
        )
        height, width = each.images[0].shape[1:3]
        notes += [f"{each.model.label}, reward hacking: {hacked['what']}"] if hacked else []
        notes += [note for name in rewards if (note := _describe_missing(each, name, len(found) > 1))]
        models.append({
            "label": each.model.label, "given": each.model.given, "base": each.model.generator_fields["model"],
            "step": each.model.step, "trained": list(mine), "width": width, "height": height, "seconds": each.seconds,
            "figures": figure, "missing": each.missing, "hacking": hacked,
        })  # fmt: skip
    sizes = {(model["width"], model["height"]) for model in models}
    if len(sizes) > 1:
        notes.append("the models' images differ in size, so their noises do: differences are between prompts alone")
    said: dict[str, Any] = to_jsonable({
        **(more or {}), "baseline": first.model.label, "images_per_prompt": spec.images_per_prompt, "seed": spec.seed,
        "models": models, "notes": notes, "prompts": _prompt_reports(found, spec),
    })  # fmt: skip
    return said


def _describe_missing(each: ModelEvaluation, reward: str, several: bool) -> str | None:
    """How many images a reward gave no score, and why mostly."""
    reasons = each.missing.get(reward)
    if not reasons:
        return None
    count, total = sum(reasons.values()), len(each.scored) * len(each.images[0])
    why = next(iter(reasons))
    return f"{reward}: {count} of {total} images{f' of {each.model.label}' if several else ''} have no score: {why}"


def _prompt_reports(found: Sequence[ModelEvaluation], spec: EvalSpec) -> list[dict[str, Any]]:
    """Every prompt with every score."""
    return [
        {
            "prompt": prompt.prompt,
            "tag": found[0].scored[index].tag,
            "metadata": prompt.metadata,
            "seeds": derive_seeds(spec.seed, "evaluation", index, count=spec.images_per_prompt),
            "models": {
                each.model.label: {key: vars(each.scored[index])[key] for key in ("scores", "diversity", "vendi")}
                for each in found
            },
        }
        for index, prompt in enumerate(spec.prompts)
    ]


def write_comparison(folder: Path, evaluation: Mapping[str, Any], found: Sequence[ModelEvaluation]) -> dict[str, Path]:
    """`evaluation.json`, `table.md` and `contact-sheet.png`, each whole or not at all; their paths by what they are."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "evaluation.json": json.dumps(evaluation, indent=1, allow_nan=False),
        "table.md": table.render_markdown(evaluation),
    }
    for name, text in texts.items():
        with replacing(folder / name) as partial:
            partial.write_text(text)
    with replacing(folder / "contact-sheet.png") as partial:
        contact_sheet.draw_contact_sheet(evaluation, [each.images for each in found]).save(partial, format="PNG")
    return {
        "figures and every score": folder / "evaluation.json",
        "the table": folder / "table.md",
        "contact sheet": folder / "contact-sheet.png",
    }
