"""What a training job is asked to do. REST, the command line, the dashboard and the docs derive from these models.

A knob is declared here once, typed, with its default and the reason beside it. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args

from pydantic import (
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    JsonValue,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from dipole.client.adapters import EndpointKind
from dipole.client.adapters.base import MAX_TIMEOUT_S
from dipole.client.endpoint import Endpoint, parse_options
from dipole.errors import InvalidInput
from dipole.protocol.schemas import MAX_BODY_BYTES, Name, StrictModel
from dipole.protocol.validation import first_error

PositiveFloat = Annotated[float, Field(gt=0)]
CompareIn = Literal["latents", "features"]
Precision = Literal["fp32", "bf16", "fp16"]
TrackerName = Literal["wandb", "trackio", "tensorboard", "mlflow"]
WebhookUrl = Annotated[str, Field(min_length=1, max_length=2048)]
MAX_COUNT = 999_999_999  # of whatever a job counts: columns have 32 bits, and a checkpoint's name nine digits
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
CountOrZero = Annotated[int, Field(ge=0, le=MAX_COUNT)]
AdamBeta = Annotated[float, Field(ge=0, lt=1)]

MIN_PROMPTS_FOR_SIGNIFICANCE = 6
"""With fewer, not even all of them agreeing is significant at 5 %, whatever their spread seems to be."""
MAX_GROUP_BYTES = MAX_BODY_BYTES - 2**20  # of a request to a reward, which has a prompt and metadata too

CHECK_DECODER_EVERY = 16

T = TypeVar("T")
Many = Annotated[tuple[T, ...], FailFast()]  # stop at the first error: a request of 1 MB may hold a million


def _list_of_one(value: Any) -> Any:
    """A name alone is a list of it; a name that is given twice counts once."""
    names = [value] if isinstance(value, str) else value
    return list(dict.fromkeys(names)) if isinstance(names, list | tuple) and all(map(_is_text, names)) else names


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


class SpecModel(StrictModel):
    """Base class. A part is looked at again by the model that it becomes part of: `model_copy` checks nothing."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, revalidate_instances="always")


class ShownSpec(SpecModel):
    """Which candidates of a group a reward is asked for, chosen by another reward of the job."""

    by: Name = Field(description="Name of the reward of this job whose scores choose.")
    best: CountOrZero = Field(default=0, description="Number of its best candidates that are shown.")
    worst: CountOrZero = Field(default=0, description="Number of its worst candidates that are shown.")

    @model_validator(mode="after")
    def _check_count(self) -> ShownSpec:
        if self.best + self.worst < 2:
            raise InvalidInput(
                f"shows: best + worst = {self.best + self.worst} leaves nothing to compare: show at least 2",
                field="best",
            )
        return self


class RewardSpec(SpecModel):
    """How a job uses one endpoint: a registered name, or an inline `url` on an allowed host."""

    name: Name = Field(
        description="Name of the reward: a registered one, or one of the job's own where `url` is given."
    )
    url: str | None = Field(
        default=None, max_length=2048, description="Base URL of the endpoint; absent for a registered reward."
    )
    kind: EndpointKind = Field(
        default="dipole", description="Kind of the endpoint at `url`; a registered reward has its own."
    )
    options: dict[str, JsonValue] = Field(
        default={}, description="Options of the kind, as they are given at registration."
    )
    weight: float = Field(
        default=1.0,
        description="Its part of the weighted sum. Below 0 lower scores are better; 0 holds the reward out: it is "
        "watched, never trained on.",
    )
    at_least: float | None = Field(
        default=None,
        description="A gate: only candidates that it scores so or higher attract, and all others rank below them, "
        "whatever the sum says. Weight 0 makes a reward a gate alone.",
    )
    required: bool = Field(
        default=True,
        validate_default=True,
        description="A required reward pauses the job when it fails past its deadline; one that is held out never is.",
    )
    timeout_s: PositiveFloat = Field(
        default=60.0,
        le=MAX_TIMEOUT_S,
        description="Deadline of one group: retries count, and so does queueing behind the trainer's other groups. "
        "Absent: what the endpoint was registered with (`options.timeout_s`), or 60.",
    )
    normalize: Literal["zscore", "rank", "none"] = Field(
        default="zscore", description="How scores of a group are made comparable before rewards are weighed together."
    )
    min_valid: Count = Field(
        default=2,
        description="Fewest candidates that must have a score; with fewer, the group's ranking is a failure.",
    )
    shows: ShownSpec | None = Field(
        default=None,
        description="Ask it for the candidates alone that another reward chose, as `{by, best, worst}`; all if absent.",
    )
    evaluates: bool = Field(
        default=True,
        description="Whether evaluations ask it too. Leave people out: an order of one prompt's images is no score.",
    )

    @field_validator("required")
    @classmethod
    def _never_require_held_out(cls, required: bool, others: ValidationInfo) -> bool:
        """Also where `true` was given: clients send the default of the schema, and older jobs have it stored."""
        return required and (others.data.get("weight") != 0 or others.data.get("at_least") is not None)

    @property
    def is_trained(self) -> bool:
        """Whether it is part of the sum."""
        return self.weight != 0

    @property
    def is_held_out(self) -> bool:
        """Whether it is only watched: neither part of the sum nor a gate."""
        return self.weight == 0 and self.at_least is None

    def inline_endpoint(self) -> Endpoint | None:
        """The endpoint that a `url` describes. It has no key and no certificates: those are for registered ones."""
        return None if self.url is None else Endpoint(url=self.url, kind=self.kind, options=self.options)

    @model_validator(mode="after")
    def _check_kind(self) -> RewardSpec:
        if self.url is not None:
            parse_options(self.kind, self.options)
        elif self.kind != "dipole" or self.options:
            name = "kind" if self.kind != "dipole" else "options"
            raise InvalidInput(
                f"{name} is given without url: a registered reward has its own, so leave it out or give the url",
                field=name,
            )
        return self


class PromptSpec(SpecModel):
    """One line of a prompts file."""

    model_config = ConfigDict(revalidate_instances="never")  # there may be a million, and none is made by a copy

    prompt: str = Field(min_length=1, max_length=10_000, description="Text that images are drawn for.")
    metadata: dict[str, JsonValue] | None = Field(
        default=None, description="What the prompt asks for, as rewards such as GenEval read it."
    )


class MethodSettings(SpecModel):
    """A method's own settings, and what they say to those who know no method."""

    own_draws: ClassVar[str | None] = None
    """The setting that says how it draws its samples, where it trains on samples drawn that way alone."""
    trains_on_pairs: ClassVar[bool] = False
    """Whether it trains on samples that others chose and rejected."""

    def sides(self, candidates: int) -> tuple[int, int]:
        """(P, N): how many of a group's best and worst it compares, of a group of so many."""
        return 1, 1

    def pulls_to_base(self) -> bool:
        """Whether the base's samples weigh anything, for a method that is made of them."""
        return True

    def uses_features(self) -> bool:
        """Whether it looks at φ of the samples, or at their latents alone."""
        return False

    def moves_share(self) -> float:
        """Of a group's samples, the best, how many have a gradient."""
        return 1.0

    def check_candidates(self, candidates: int, *, field: str) -> None:
        """Raise InvalidInput on a setting below `field` where a group of so many is too small."""


class TwoSidedSettings(MethodSettings):
    """A method that compares a group's best with its worst."""

    trains_on_pairs = True

    positives: Count | None = Field(
        default=None, description="P: number of best candidates of a group that are used; a third if absent."
    )
    negatives: Count | None = Field(
        default=None, description="N: number of worst candidates of a group that are used; a third if absent."
    )

    def sides(self, candidates: int) -> tuple[int, int]:
        """What is not given is a third of the group, as published (8 and 8 of 24), or what the other side leaves."""
        third = max(candidates // 3, 1)
        positives = self.positives or max(min(third, candidates - (self.negatives or third)), 1)
        return positives, self.negatives or max(min(third, candidates - positives), 1)

    def check_candidates(self, candidates: int, *, field: str) -> None:
        positives, negatives = self.sides(candidates)
        if positives + negatives > candidates:
            raise InvalidInput(
                f"{field}.positives + {field}.negatives = {positives + negatives} exceeds "
                f"candidates = {candidates}: lower them or draw more candidates",
                field=f"{field}.positives" if self.positives else f"{field}.negatives",
            )


class DrpoSpec(TwoSidedSettings):
    """DrPO's own settings; defaults are the published ones for SD-Turbo (METHOD: published settings)."""

    radii: Many[PositiveFloat] = Field(
        default=(0.02, 0.05, 0.2),
        min_length=1,
        max_length=16,
        description="Radii of the kernel, each of which adds a field of its own.",
    )
    kernel: Literal["laplacian", "rbf", "cosine"] = Field(
        default="laplacian", description="Kernel that weighs samples by their distance in feature space."
    )
    positive_weight: PositiveFloat = Field(default=3000.0, description="Weight of the best candidates, which attract.")
    negative_weight: PositiveFloat = Field(default=3000.0, description="Weight of the worst candidates, which repel.")
    ref_positive_weight: PositiveFloat = Field(
        default=3000.0, description="Weight of the base's samples that attract, in the drift to the base."
    )
    ref_negative_weight: PositiveFloat = Field(
        default=3000.0, description="Weight of the model's own samples that repel, in the drift to the base."
    )
    ref_lambda: float = Field(
        default=0.2, ge=0, description="Weight of the pull to the frozen base's samples on the same noises (λ_ref)."
    )
    mask_self: bool = Field(
        default=False, description="Mask each sample out of its own anchors in the preference drift."
    )
    feature_top_fraction: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Share of a group's candidates, its best by score, that are moved; the others are anchors at most. "
        "Below 1 is an approximation that saves their gradient.",
    )

    def moves_share(self) -> float:
        return self.feature_top_fraction

    def pulls_to_base(self) -> bool:
        return self.ref_lambda > 0

    def uses_features(self) -> bool:
        return True


class DpoSpec(TwoSidedSettings):
    """Direct preference optimisation on distances to the best and the worst of the group."""

    beta: PositiveFloat = Field(
        default=30.0, description="Sharpness of the preference: larger punishes a wrong order more."
    )
    space: CompareIn = Field(
        default="latents", description="Whether distances are of latents, as published, or of the job's features."
    )

    def uses_features(self) -> bool:
        return self.space == "features"


class GrpoSpec(MethodSettings):
    """Neighbor GRPO: candidates around one noise, and a softmax over their distances to anchors as the policy."""

    own_draws = "sigma"

    sigma: float = Field(
        default=0.3, gt=0, le=1, description="How far candidates' noises are from their common one (σ)."
    )
    anchors: Count = Field(default=4, description="Number of a group's candidates that gradients flow through.")
    temperature: PositiveFloat = Field(
        default=1.0, description="Temperature: divides the mean squared latent distances."
    )
    clip: PositiveFloat = Field(default=0.2, description="Bound of the ratio's distance from 1, as in PPO.")
    norm_p: float = Field(default=0.8, gt=0, le=2, description="Exponent of the quasi-norm that scales advantages.")
    advantage_clip: PositiveFloat = Field(default=5.0, description="Bound of an advantage on either side of 0.")

    def check_candidates(self, candidates: int, *, field: str) -> None:
        if self.anchors > candidates:
            raise InvalidInput(
                f"{field}.anchors = {self.anchors} exceeds candidates = {candidates}: anchors are candidates",
                field=f"{field}.anchors",
            )


class PsoSpec(MethodSettings):
    """Pairwise sample optimisation: a Gaussian policy around the generator's output, trained on adjacent pairs."""

    own_draws = "std"

    std: PositiveFloat = Field(
        default=0.05, description="Standard deviation of the Gaussian that candidates are drawn from, in latent units."
    )
    beta: PositiveFloat = Field(
        default=50.0, description="Sharpness of the preference: larger punishes a wrong order more."
    )
    clip: float = Field(default=0.1, gt=0, lt=1, description="Bound of the ratio's distance from 1.")


class SftSpec(MethodSettings):
    """Best-of-K: every sample is regressed to the group's best."""

    trains_on_pairs = True

    space: CompareIn = Field(
        default="latents", description="Whether distances are of latents, as published, or of the job's features."
    )

    def uses_features(self) -> bool:
        return self.space == "features"


class MethodSpec(SpecModel):
    """The method, and its settings under its own name; `random` is DrPO on shuffled ranks, the control."""

    type: Literal["drpo", "dpo", "grpo", "pso", "sft", "random"] = Field(
        default="drpo", description="Which method trains; `random` is the control."
    )
    drpo: DrpoSpec | None = Field(default=None, description="Settings of `drpo`.")
    dpo: DpoSpec | None = Field(default=None, description="Settings of `dpo`.")
    grpo: GrpoSpec | None = Field(default=None, description="Settings of `grpo`.")
    pso: PsoSpec | None = Field(default=None, description="Settings of `pso`.")
    sft: SftSpec | None = Field(default=None, description="Settings of `sft`.")
    random: DrpoSpec | None = Field(default=None, description="Settings of `random`, which are those of `drpo`.")

    @model_validator(mode="before")
    @classmethod
    def _fill_settings(cls, values: Any) -> Any:
        """Fill in the defaults of the chosen method; another method's settings are refused."""
        if not isinstance(values, dict) or not isinstance(chosen := values.get("type", "drpo"), str):
            return values
        for name in cls.model_fields.keys() - {"type", chosen}:
            if values.get(name) is not None:
                raise InvalidInput(
                    f"method.{name} is given, but method.type is {chosen!r}: give method.{chosen} or change the type",
                    field=f"method.{name}",
                )
        return {chosen: {}, **{name: value for name, value in values.items() if value is not None}}

    @property
    def trains_on_pairs(self) -> bool:
        """Whether it may be given samples that others chose and rejected; of shuffled ranks nothing could be learnt."""
        return self.settings.trains_on_pairs and self.type != "random"

    @classmethod
    def types_for_pairs(cls) -> tuple[str, ...]:
        return tuple(kind for kind in get_args(cls.model_fields["type"].annotation) if cls(type=kind).trains_on_pairs)

    @property
    def settings(self) -> MethodSettings:
        """The chosen method's own."""
        chosen: MethodSettings = getattr(self, self.type)
        return chosen


class FeaturesSpec(SpecModel):
    """The frozen space that samples drift in (φ), one file each in dipole_trainer.features."""

    type: Literal[
        "auto",
        "tiny_contrastive",
        "tiny_labelled",
        "latents",
        "latent_mae",
        "vit_mae",
        "dinov2",
        "clip",
        "teacher_unet",
    ] = Field(
        default="auto",
        description="`auto`: tiny_contrastive for tiny-turbo, as published latent_mae for SD and vit_mae for SDXL, and "
        "vit_mae for SANA-Sprint.",
    )
    weights: str | None = Field(
        default=None,
        min_length=1,
        max_length=512,
        description="A name under DIPOLE_MODELS_DIR or a hub id in the local cache; the published ones if absent.",
    )
    revision: str | None = Field(
        default=None, max_length=128, description="Revision of the weights, if `weights` is a hub id."
    )
    keys: Many[Name] = Field(
        default=(),
        max_length=64,
        description="Keys of the type's features that are used; if empty, the published ones.",
    )
    timestep: int = Field(default=100, ge=0, le=999, description="Timestep at which `teacher_unet` is asked.")
    noise: float = Field(
        default=0.1, ge=0, description="Noise that is mixed into the latents for `teacher_unet`, one draw a sample."
    )
    pool: int = Field(default=4, ge=1, le=64, description="Side of the squares that are averaged for `teacher_unet`.")

    @field_validator("type", mode="before")
    @classmethod
    def _read_former_name(cls, space: Any) -> Any:
        """Stored jobs of earlier versions name the labelled encoder `tiny`, and go on in it."""
        return "tiny_labelled" if space == "tiny" else space


class LoraSpec(SpecModel):
    """The shape of a LoRA adapter."""

    rank: int = Field(default=16, ge=1, le=1024, description="Rank of the adapter.")
    alpha: float = Field(
        default=16.0, gt=0, description="Scale of the adapter: its product is multiplied by alpha / rank."
    )
    target_modules: Many[str] = Field(
        default=("to_q", "to_k", "to_v", "to_out.0"),
        min_length=1,
        max_length=64,
        description="Names of the layers that get an adapter.",
    )


class EmaSpec(SpecModel):
    """The exponential moving average of the trained weights, kept beside them and exported on its own."""

    decay: float = Field(
        default=0.999,
        gt=0,
        lt=1,
        description="Share of the average that an update keeps, at most. The first keeps nothing of the base, and "
        "update n, from 0, keeps (1 + n) / (10 + n) where that is less: an average of few updates is one of these.",
    )
    evaluated: bool = Field(
        default=False,
        description="Whether evaluations and pictures are of the average; otherwise of the weights that are trained. "
        "Each says of which (`weights`).",
    )


class OptimizerSpec(SpecModel):
    """AdamW. The rate rises linearly over `warmup_steps`, and falls linearly over the last `decay_steps`."""

    lr: PositiveFloat = Field(default=1e-4, description="Published: 1e-4 for SD-Turbo, 1e-5 for SDXL-Turbo.")
    betas: tuple[AdamBeta, AdamBeta] = Field(
        default=(0.9, 0.999), description="AdamW's decay rates of the gradient's mean and of its square's."
    )
    weight_decay: float = Field(default=1e-2, ge=0, description="AdamW's weight decay.")
    max_grad_norm: PositiveFloat = Field(default=1.0, description="Norm that a larger gradient is scaled down to.")
    warmup_steps: CountOrZero = Field(default=0, description="Number of first steps over which the rate rises.")
    decay_steps: CountOrZero = Field(default=0, description="Number of last steps over which the rate falls.")
    ema: EmaSpec | None = Field(
        default=None,
        description="Keep a moving average of the trained weights too, in checkpoints and in `export/ema/`; none if "
        "absent.",
    )

    @property
    def evaluated_weights(self) -> Literal["trained", "ema"]:
        """Which weights evaluations score."""
        return "ema" if self.ema is not None and self.ema.evaluated else "trained"


class EvalSpec(SpecModel):
    """Evaluation on fixed noises, with every reward of the job, trained and held-out."""

    every: CountOrZero = Field(default=0, description="Steps between evaluations; 0 evaluates only before and after.")
    prompts: Many[PromptSpec] = Field(
        default=(), max_length=2000, description="Held-out prompts to evaluate on; none if empty."
    )
    images_per_prompt: int = Field(
        default=4, ge=1, le=64, description="Number of images that are drawn for each prompt."
    )
    seed: int = Field(
        default=1234, ge=-(2**63), lt=2**63, description="Seed of the noises that every evaluation draws from."
    )
    best_by: str | None = Field(
        default=None,
        max_length=129,
        description="Score (`reward` or `reward.part`) whose best checkpoint is kept; a held-out reward's if absent.",
    )


class SamplesSpec(SpecModel):
    """Pictures of the same prompts and noises from the base to the end, and a point of the curves with each.

    They are of the first held-out prompts, which the rewards are asked about; where a job holds none out, of the first
    training prompts, for pictures and diversity alone. Noises and their number are the evaluation's.
    """

    prompts: int = Field(
        default=8, ge=0, le=12, description="Number of prompts, a row each; 0 turns pictures and curves' points off."
    )
    every: CountOrZero | None = Field(
        default=None,
        description="Steps between two; 0 only before and after. If absent, a tenth of the steps, or more where that "
        "would draw more than a twentieth of the images that are trained on.",
    )


class InitialCheckpoint(SpecModel):
    """The checkpoint of an earlier job that a job starts from: its weights, merged, are the job's frozen base.

    The job keeps a copy of them (storage/job_layout.py), and needs nothing more of the earlier job.
    """

    id: str = Field(max_length=64, description="The checkpoint's id.")
    name: str = Field(max_length=700, description="Its name, as `GET /v1/models` lists it.")
    job: str = Field(max_length=64, description="The job that made it.")
    step: CountOrZero = Field(description="Number of updates that the earlier job had done.")


class GeneratorSpec(SpecModel):
    """Which one-step generator, and how it is loaded and trained."""

    model: str = Field(
        default="tiny-turbo",
        min_length=1,
        max_length=512,
        description="A known name, a folder under DIPOLE_MODELS_DIR, or a hub id in the local cache.",
    )
    revision: str | None = Field(
        default=None, max_length=128, description="Revision of the model, if `model` is a hub id."
    )
    tune: Literal["lora", "full"] = Field(
        default="lora", description="Train an adapter, or every weight of the network."
    )
    lora: LoraSpec = Field(default=LoraSpec(), description="Shape of the adapter, where `tune` is `lora`.")
    precision: Precision | None = Field(
        default=None,
        description="Precision of the frozen base; if absent, bf16 on a GPU that has it and fp32 elsewhere, as an "
        "event says. What is trained stays fp32.",
    )
    resolution: int | None = Field(
        default=None,
        ge=8,
        le=2048,
        multiple_of=8,
        description="Side of the images, in pixels; the model's if absent.",
    )
    compile: bool = Field(
        default=False, description="Compile the network with torch.compile: minutes at start, faster steps on a GPU."
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed that all of the job's noises follow from.")
    initial_checkpoint: InitialCheckpoint | None = Field(
        default=None, description="Checkpoint that the job starts from; the name given as `model` says which."
    )

    @classmethod
    def from_stored(cls, text: str) -> Self:
        """A job's spec from the store, also as earlier versions wrote it. Raises InvalidInput: a later one may have
        written what this one refuses.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError:
            former = read_former_spec(text)
        try:
            return cls.model_validate_json(json.dumps(former))
        except ValidationError as error:
            first = first_error(error, "")
            why = f"{first.path or 'spec'}: {first.message}"
            message = f"this version cannot read the job's settings: {why}; create it anew"
            raise InvalidInput(message, field=first.path or None) from None


def read_former_spec(stored: str | Mapping[str, Any]) -> dict[str, Any]:
    """A stored job's settings, or their summary, with what earlier versions wrote as this one does: features were a
    name, and the control a knob of DrPO's. Raises InvalidInput for what is no object.
    """
    try:
        said = dict(json.loads(stored) if isinstance(stored, str) else stored)
    except (ValueError, TypeError):
        raise InvalidInput("this version cannot read the job's settings: they are no JSON object") from None
    if isinstance(said.get("features"), str):
        said["features"] = {"type": said["features"]}
    method = said.get("method")
    drpo = method.get("drpo") if isinstance(method, dict) else None
    if isinstance(drpo, dict) and "shuffle_ranks" in drpo:
        knobs = {name: value for name, value in drpo.items() if name != "shuffle_ranks"}
        chosen = "random" if drpo["shuffle_ranks"] else "drpo"
        said["method"] = {"type": chosen, chosen: knobs}
    return said


GENERATOR_FIELDS = ("model", "revision", "tune", "lora", "precision", "resolution", "initial_checkpoint")
"""What of a GeneratorSpec decides what its checkpoints draw."""


MAX_SAMPLINGS, MAX_SAMPLED_SHARE = 10, 20  # pictures a run, and one in so many of the images that it draws at most
PROMPT_DRAWS, PAIR_DRAWS = 20, 5  # of each prompt, in a job that does not say for how long it trains
MIN_STEPS, MAX_STEPS = 100, 1000  # of such a job; 1000 are the published ones of SD-Turbo


def choose_steps(prompts: int, prompts_per_step: int, *, of_pairs: bool) -> int:
    """How many updates a job has that does not say. The same for every method, so that comparisons are of one budget.

    Fewer prompts than the published sets have are drawn more often, and few of them more often than is good for them;
    pairs are fewer draws, as their images are the same each time.
    """
    draws = PAIR_DRAWS if of_pairs else PROMPT_DRAWS
    return min(MAX_STEPS, max(MIN_STEPS, -(-draws * prompts // prompts_per_step))) if prompts else MAX_STEPS


class TrainSpec(GeneratorSpec):
    """Everything the training loop needs to know."""

    features: FeaturesSpec = Field(
        default=FeaturesSpec(), description="The frozen feature space that samples drift in."
    )
    prompts: Many[PromptSpec] = Field(default=(), max_length=1_000_000, description="Prompts to train on.")
    pairs_file: str | None = Field(
        default=None,
        max_length=64,
        description="Id of an uploaded file of chosen and rejected images: no reward is asked.",
    )
    replay_job: str | None = Field(
        default=None,
        max_length=64,
        description="Id of a job with record_candidates whose rankings are trained on again.",
    )
    rewards: Many[RewardSpec] = Field(
        default=(), max_length=32, description="Rewards that rank the candidates, and those that only watch."
    )
    method: MethodSpec = Field(default_factory=MethodSpec, description="How a ranked group becomes a loss.")
    candidates: int = Field(default=24, ge=2, le=64, description="K: number of images per prompt and update.")
    prompts_per_step: int = Field(
        default=8, ge=1, le=1024, description="Number of prompts of one step, over all devices."
    )
    steps: Count = Field(
        default_factory=lambda known: choose_steps(
            len(known.get("prompts", ())),
            known.get("prompts_per_step", 8),
            of_pairs=known.get("pairs_file") is not None,
        ),
        description="Number of updates; if absent, as many as draw each prompt 20 times (of pairs, 5 times), "
        "at least 100 and at most 1000.",
    )
    max_staleness: int = Field(
        default=0, ge=0, le=16, description="Number of steps that generation may run ahead of updates."
    )
    optimizer: OptimizerSpec = Field(default=OptimizerSpec(), description="Settings of the optimizer.")
    evaluation: EvalSpec = Field(default=EvalSpec(), description="When and on what the model is evaluated.")
    samples: SamplesSpec = Field(default=SamplesSpec(), description="Which pictures are drawn during training.")
    stop_on: Literal["hacking"] | None = Field(
        default=None,
        description="`hacking`: end the job where two evaluations in a row find that a trained reward rose while a "
        "held-out one, or diversity, surely fell, and by more than a little; the best checkpoint before that is kept "
        "and exported. If absent, an event says where it would have stopped.",
    )
    report_to: Annotated[
        Many[TrackerName],
        BeforeValidator(_list_of_one, json_schema_input_type=TrackerName | tuple[TrackerName, ...]),
    ] = Field(
        default=(),
        max_length=4,
        description="Experiment trackers that get the curves, pictures, settings and the LoRA too, one or several; "
        "each needs its extra where the worker runs, and its address and keys there as environment variables.",
    )
    notify: Annotated[
        Many[WebhookUrl], BeforeValidator(_list_of_one, json_schema_input_type=WebhookUrl | tuple[WebhookUrl, ...])
    ] = Field(
        default=(),
        max_length=4,
        description="URLs, one or several, that get a signed POST when the job has ended (docs/webhooks.md); "
        "DIPOLE_WEBHOOK_HOSTS must allow their hosts.",
    )
    checkpoint_every: Count = Field(default=100, description="Steps between checkpoints.")
    keep_checkpoints: Count = Field(
        default=3, description="Number of checkpoints that are kept, the newest; the best is kept too."
    )
    candidates_as: Literal["auto", "images", "latents"] = Field(
        default="auto",
        description="What rewards are sent. `auto`: latents to those that are served with this model's VAE "
        "(DIPOLE_REWARD_VAE) in the job's precision, which decode them themselves, and images to others, or to all "
        "where the features are of pixels; `images` to all; `latents` to all, and a reward that takes none fails.",
    )
    reward_decoder: Literal["vae", "tiny"] = Field(
        default="vae",
        description="What makes the images that rewards see. `tiny`: a small decoder of the model's kind (TAESD), an "
        "approximation that takes a hundredth of the operations; evaluations and pictures stay the VAE's.",
    )
    check_decoder_every: Count = Field(
        default=CHECK_DECODER_EVERY,
        description="Of how many groups one is ranked on the VAE's images too, where `reward_decoder` is `tiny`: it "
        "trains on those, and how far the two orders agree is told.",
    )
    record_candidates: bool = Field(
        default=False,
        description="Keep every candidate's latents with its scores (32 KB an image at 512²), for replays.",
    )
    export_merged: bool = Field(default=False, description="Export the whole pipeline too, adapter merged.")
    chunk_size: Count = Field(
        default=8,
        description="Samples that are worked on at once; memory, not maths. Halved when memory runs out.",
    )
    memory: Literal["auto", "lean"] = Field(
        default="auto",
        description="`auto` keeps the graphs of drawn samples for their gradient as far as memory allows, which saves "
        "a second pass; `lean` draws every sample again, in the memory of one chunk. The gradient is the same.",
    )
    memory_budget_gib: PositiveFloat | None = Field(
        default=None,
        description="GiB that kept graphs may take on each device, where `memory` is `auto`; if absent, half of what "
        "is free on a GPU beside the weights, and 1 on a CPU.",
    )

    @property
    def is_offline(self) -> bool:
        """Whether it trains on recorded preferences, and asks no reward."""
        return self.pairs_file is not None or self.replay_job is not None

    def sends_latents(self, *, reads_pixels: bool, may_be_taken: bool) -> bool:
        """Whether groups are sent as latents: where images are made anyway, or all want them, only if asked for."""
        if self.reward_decoder == "tiny":
            return False
        return self.candidates_as == "latents" or (self.candidates_as == "auto" and not reads_pixels and may_be_taken)

    @property
    def asked_rewards(self) -> tuple[RewardSpec, ...]:
        """The rewards as they are asked: an offline job's only watch its evaluations, so none of them is required."""
        if not asks_rewards(self):
            return ()
        watched = {"required": False, "weight": 0.0} if self.is_offline else {}
        return tuple(each.model_copy(update=watched) for each in self.rewards)

    @model_validator(mode="after")
    def _check_consistency(self) -> TrainSpec:
        self._check_group_size()
        self._check_source()
        self._check_settings_used()
        names = [reward.name for reward in self.rewards]
        if len(set(names)) != len(names):
            raise InvalidInput("rewards: names must be unique within a job", field="rewards")
        for reward in self.rewards:
            self._check_shown(reward)
        return self

    def _check_shown(self, reward: RewardSpec) -> None:
        """What a reward is shown is chosen by another of the job, which is shown everything."""
        if reward.shows is None:
            return
        chooser = next((each for each in self.rewards if each.name == reward.shows.by), None)
        where = f"rewards: shows.by of {reward.name}"
        if chooser is None or chooser is reward or chooser.shows is not None:
            raise InvalidInput(
                f"{where} is {reward.shows.by!r}: name another reward of this job that has no `shows` itself",
                field="rewards",
            )
        if reward.evaluates and not chooser.evaluates and self.evaluation.prompts:
            raise InvalidInput(
                f"{where} is {reward.shows.by!r}, which evaluations do not ask: set evaluates alike in both",
                field="rewards",
            )

    def _check_group_size(self) -> None:
        # groups of pairs are as large as their prompt has pairs
        if self.pairs_file is None:
            self.method.settings.check_candidates(self.candidates, field=f"method.{self.method.type}")

    def _check_settings_used(self) -> None:
        """Refuse settings that nothing would look at: they are a mistake."""
        space = self.features.type
        unused = ["weights", "revision"] if space in ("latents", "tiny_labelled", "teacher_unet") else []
        unused += ["timestep", "noise", "pool"] if space != "teacher_unet" else []
        for name in unused:
            if getattr(self.features, name) != FeaturesSpec.model_fields[name].default:
                raise InvalidInput(
                    f"features.{name} is given, but features.type {space!r} has none: leave it out or change the type",
                    field=f"features.{name}",
                )
        if self.evaluation.every and not self.evaluation.prompts:
            raise InvalidInput(
                "evaluation.every is given, but there are no prompts to evaluate on: give evaluation.prompts or "
                "validation_file, or leave it out",
                field="evaluation.every",
            )
        if self.samples.every and not self.samples.prompts:
            raise InvalidInput(
                "samples.every is given, but samples.prompts is 0, which turns pictures off: leave one of them out",
                field="samples.every",
            )

        if self.reward_decoder == "tiny" and self.is_offline:
            raise InvalidInput(
                "reward_decoder is 'tiny', but a job without rewards sends them no images: leave it out",
                field="reward_decoder",
            )
        if self.reward_decoder == "tiny" and self.candidates_as == "latents":
            raise InvalidInput(
                "reward_decoder is 'tiny', but candidates_as 'latents' sends no images: leave one of them out",
                field="reward_decoder",
            )
        if self.reward_decoder == "vae" and self.check_decoder_every != CHECK_DECODER_EVERY:
            raise InvalidInput(
                "check_decoder_every is given, but reward_decoder is 'vae': set it to 'tiny', or leave this out",
                field="check_decoder_every",
            )
        if self.memory == "lean" and self.memory_budget_gib is not None:
            raise InvalidInput(
                "memory_budget_gib is given, but memory 'lean' keeps no graphs: leave it out, or set memory to 'auto'",
                field="memory_budget_gib",
            )
        if self.stop_on is not None:
            self._check_stop_found()

    def _check_stop_found(self) -> None:
        """Refuse a `stop_on` that no evaluation of this job could ever find."""
        knobs = self.evaluation
        lacking = {
            "evaluations during training: give evaluation.every": knobs.every == 0,
            f"{MIN_PROMPTS_FOR_SIGNIFICANCE} held-out prompts or more, as nothing is sure with fewer: give "
            "evaluation.prompts or validation_file": len(knobs.prompts) < MIN_PROMPTS_FOR_SIGNIFICANCE,
            "a trained reward that evaluations ask: give one of the rewards a weight, and evaluates": (
                self.pairs_file is not None or not any(each.is_trained and each.evaluates for each in self.rewards)
            ),
            "something that may fall: hold a reward out with weight 0, or give evaluation.images_per_prompt > 1 for "
            "diversity": (
                knobs.images_per_prompt == 1 and not any(each.is_held_out and each.evaluates for each in self.rewards)
            ),
        }
        if missing := [what for what, is_missing in lacking.items() if is_missing]:
            raise InvalidInput(f"stop_on: {self.stop_on} needs {'; and '.join(missing)}", field="stop_on")

    def sample_interval(self) -> int:
        """Steps between two pictures; 0: only before and after."""
        if self.samples.every is not None or self.samples.prompts == 0:
            return self.samples.every or 0
        drawn = self.samples.prompts * self.evaluation.images_per_prompt
        trained = self.prompts_per_step * self.candidates
        cheap = -(-MAX_SAMPLED_SHARE * drawn // trained)
        return max(-(-self.steps // MAX_SAMPLINGS), cheap)

    def with_explicit_sides(self) -> TrainSpec:
        """The same with P and N as numbers where they followed from K, for whoever reads what the job is."""
        settings = self.method.settings
        if not isinstance(settings, TwoSidedSettings):
            return self
        positives, negatives = settings.sides(self.candidates)
        explicit = settings.model_copy(update={"positives": positives, "negatives": negatives})
        return self.model_copy(update={"method": self.method.model_copy(update={self.method.type: explicit})})

    def check_side(self, side: int) -> None:
        """Raises InvalidInput where a group of images of this side is more than a reward can be sent."""
        groups = {
            "candidates": 0 if self.is_offline else self.candidates,
            "evaluation.images_per_prompt": self.evaluation.images_per_prompt if self.evaluation.prompts else 0,
        }
        most = MAX_GROUP_BYTES // (3 * side**2)
        for field, count in groups.items():
            if self.rewards and count > most:
                raise InvalidInput(
                    f"{field} = {count}: a reward can be sent {most} images of {side}×{side} pixels at once",
                    field=field,
                )

    def check_window(self, side: int, limit_gib: float) -> None:
        """Raises InvalidInput where the candidates in flight, of images of this side, take more than `limit_gib`."""
        windows, gib = self.max_staleness + 1, 2**30
        # noise and sample are 4 float32 for each square of 8×8 pixels; an offline job sends no images
        each = side**2 // 2 + (0 if self.is_offline else 3 * side**2)
        window = self.prompts_per_step * self.candidates * each
        if windows * window > limit_gib * gib:
            field = "max_staleness" if window <= limit_gib * gib else "prompts_per_step"
            raise InvalidInput(
                f"{field}: {windows} windows (max_staleness + 1) × {self.prompts_per_step} prompts × {self.candidates} "
                f"candidates × {each} bytes (latents and image of {side}×{side} pixels) = {windows * window / gib:.1f} "
                f"GiB in flight, and {limit_gib:g} may be (DIPOLE_CANDIDATES_MAX_GIB): lower max_staleness, "
                "prompts_per_step, candidates or resolution",
                field=field,
            )

    def _check_source(self) -> None:
        if self.pairs_file is not None and self.replay_job is not None:
            raise InvalidInput("give pairs_file or replay_job, not both", field="replay_job")
        if not self.is_offline:
            if not self.prompts:
                raise InvalidInput("prompts: a job needs at least one", field="prompts")
            if not any(reward.is_trained for reward in self.rewards):
                raise InvalidInput(
                    "rewards: at least one needs a weight, the others may be held out with weight 0", field="rewards"
                )
        if self.pairs_file is not None and not self.method.trains_on_pairs:
            raise InvalidInput(
                f"method.type {self.method.type!r} needs scores of the model's own samples; pairs train "
                f"{', '.join(MethodSpec.types_for_pairs())}",
                field="method.type",
            )
        if self.pairs_file is not None and self.method.settings.moves_share() < 1:
            raise InvalidInput(
                "feature_top_fraction needs scores of the model's own samples, which pairs are not: leave it out",
                field=f"method.{self.method.type}.feature_top_fraction",
            )
        if self.is_offline and self.max_staleness:
            raise InvalidInput("max_staleness must be 0 where no reward is waited for", field="max_staleness")


def asks_rewards(spec: TrainSpec) -> bool:
    """Whether a job's rewards are ever asked: those of an offline job are in evaluations alone."""
    return not spec.is_offline or bool(spec.evaluation.prompts)
