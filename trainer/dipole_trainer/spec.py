"""What a training job is asked to do. REST, the command line, the dashboard and the docs derive from these models.

A knob is declared here once, typed, with its default and the reason beside it. No torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, Field, JsonValue, ValidationError, model_validator

from dipole.client.adapters import Kind
from dipole.client.endpoint import Endpoint, options_of
from dipole.errors import InvalidInput
from dipole.protocol.schemas import MAX_BODY_BYTES, Name

Positive = Annotated[float, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]

MAX_GROUP_BYTES = MAX_BODY_BYTES - 2**20  # of a request to a reward, which has a prompt and metadata too

T = TypeVar("T")
Many = Annotated[tuple[T, ...], FailFast()]  # one error is enough: a body of a megabyte may hold a million


class Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RewardSpec(Spec):
    """How a job uses one endpoint: a registered name, or an inline `url` on an allowed host."""

    name: Name
    url: str | None = Field(
        default=None, max_length=2048, description="Base URL of the endpoint; absent for a registered reward."
    )
    kind: Kind = Field(default="dipole", description="Of the endpoint at `url`; a registered reward has its own.")
    options: dict[str, JsonValue] = Field(default={}, description="Of the kind, as at registration.")
    weight: float = Field(default=1.0, ge=0, description="0 holds the reward out: it is watched, never trained on.")
    required: bool = Field(
        default=True, description="A required reward pauses the job when it fails past its deadline."
    )
    timeout_s: Positive = Field(
        default=60.0,
        le=7 * 24 * 3600,
        description="Deadline of one group: retries count, and so does queueing behind the trainer's other groups.",
    )
    normalize: Literal["zscore", "rank", "none"] = "zscore"
    min_valid: int = Field(
        default=2, ge=1, description="With fewer scored candidates the group's ranking is a failure."
    )

    def inline(self) -> Endpoint | None:
        """The endpoint that a `url` describes. It has no key and no certificates: those are for registered ones."""
        return None if self.url is None else Endpoint(url=self.url, kind=self.kind, options=self.options)

    @model_validator(mode="after")
    def _kind_is_of_a_url(self) -> RewardSpec:
        if self.url is not None:
            options_of(self.kind, self.options)
        elif self.kind != "dipole" or self.options:
            name = "kind" if self.kind != "dipole" else "options"
            raise InvalidInput(
                f"{name} is given without url: a registered reward has its own, so leave it out or give the url",
                field=name,
            )
        return self


class PromptSpec(Spec):
    """One line of a prompts file."""

    prompt: str = Field(min_length=1, max_length=10_000)
    metadata: dict[str, JsonValue] | None = None


class DrpoSpec(Spec):
    """DrPO's own settings; defaults are the published ones for SD-Turbo (METHOD: published settings)."""

    positives: int = Field(default=8, ge=1, description="P: best candidates of a group, which attract.")
    negatives: int = Field(default=8, ge=1, description="N: worst candidates of a group, which repel.")
    radii: Many[Positive] = Field(default=(0.02, 0.05, 0.2), min_length=1, max_length=16)
    kernel: Literal["laplacian", "rbf", "cosine"] = "laplacian"
    positive_weight: Positive = 3000.0
    negative_weight: Positive = 3000.0
    ref_positive_weight: Positive = 3000.0
    ref_negative_weight: Positive = 3000.0
    ref_lambda: float = Field(
        default=0.2, ge=0, description="λ_ref: pull to the frozen base's samples on the same noises."
    )
    mask_self: bool = Field(
        default=False, description="Mask each sample out of its own anchors in the preference drift."
    )


class DpoSpec(Spec):
    """Direct preference optimisation on latent distances to the best and the worst of the group."""

    positives: int = Field(default=8, ge=1, description="P: best candidates of a group.")
    negatives: int = Field(default=8, ge=1, description="N: worst candidates of a group.")
    beta: Positive = 30.0


class GrpoSpec(Spec):
    """Neighbor GRPO: candidates around one noise, and a softmax over their distances to anchors as the policy."""

    sigma: float = Field(
        default=0.3, gt=0, le=1, description="σ: how far candidates' noises are from their common one."
    )
    anchors: int = Field(default=4, ge=1, description="Candidates of a group that gradients flow through.")
    temperature: Positive = Field(default=1.0, description="Divides the mean squared latent distances.")
    clip: Positive = Field(default=0.2, description="PPO's bound of the ratio's way from 1.")
    norm_p: float = Field(default=0.8, gt=0, le=2, description="p of the quasi-norm that scales advantages.")
    advantage_clip: Positive = 5.0


class PsoSpec(Spec):
    """Pairwise sample optimisation: a Gaussian policy around the generator's output, trained on adjacent pairs."""

    std: Positive = Field(default=0.05, description="Of the Gaussian, in latent units; candidates are drawn from it.")
    beta: Positive = 50.0
    clip: float = Field(default=0.1, gt=0, lt=1, description="Bound of the ratio's way from 1.")


class SftSpec(Spec):
    """Best-of-K: every sample is regressed to the group's best."""


class MethodSpec(Spec):
    """The method, and its settings under its own name; `random` is DrPO on shuffled ranks, the control."""

    type: Literal["drpo", "dpo", "grpo", "pso", "sft", "random"] = "drpo"
    drpo: DrpoSpec | None = None
    dpo: DpoSpec | None = None
    grpo: GrpoSpec | None = None
    pso: PsoSpec | None = None
    sft: SftSpec | None = None
    random: DrpoSpec | None = None

    @model_validator(mode="before")
    @classmethod
    def _own_settings_only(cls, values: Any) -> Any:
        """Fill in the defaults of the chosen method; another's settings are a mistake, not a wish."""
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
    def settings(self) -> DrpoSpec | DpoSpec | GrpoSpec | PsoSpec | SftSpec:
        """The chosen method's own."""
        chosen: DrpoSpec | DpoSpec | GrpoSpec | PsoSpec | SftSpec = getattr(self, self.type)
        return chosen


class FeaturesSpec(Spec):
    """φ: the frozen space that samples drift in, one file each in dipole_trainer.features."""

    type: Literal["auto", "tiny", "latents", "latent_mae", "vit_mae", "dinov2", "clip", "teacher_unet"] = Field(
        default="auto",
        description="`auto`: tiny for tiny-turbo, else as published: latent_mae for SD, vit_mae for SDXL.",
    )
    weights: str | None = Field(
        default=None,
        min_length=1,
        max_length=512,
        description="A name under DIPOLE_MODELS_DIR or a hub id in the local cache; absent: the type's published ones.",
    )
    revision: str | None = Field(default=None, max_length=128, description="Of the weights, where they have a hub id.")
    keys: Many[Name] = Field(default=(), max_length=64, description="Which of the type's keys; empty: as published.")
    timestep: int = Field(default=100, ge=0, le=999, description="teacher_unet: the timestep it is asked at.")
    noise: float = Field(
        default=0.1, ge=0, description="teacher_unet: noise mixed into the latents, one draw a sample."
    )
    pool: int = Field(default=4, ge=1, le=64, description="teacher_unet: side of the squares that are averaged.")


class LoraSpec(Spec):
    rank: int = Field(default=16, ge=1, le=1024)
    alpha: float = Field(default=16.0, gt=0)
    target_modules: Many[str] = Field(default=("to_q", "to_k", "to_v", "to_out.0"), min_length=1, max_length=64)


class OptimizerSpec(Spec):
    """AdamW. The rate rises linearly over `warmup_steps`, and falls linearly over the last `decay_steps`."""

    lr: Positive = Field(default=1e-4, description="Published: 1e-4 for SD-Turbo, 1e-5 for SDXL-Turbo.")
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: float = Field(default=1e-2, ge=0)
    max_grad_norm: Positive = 1.0
    warmup_steps: int = Field(default=0, ge=0)
    decay_steps: int = Field(default=0, ge=0)


class EvalSpec(Spec):
    """Evaluation on fixed noises, with every reward of the job, trained and held-out."""

    every: int = Field(default=0, ge=0, description="Steps between evaluations; 0 evaluates only before and after.")
    prompts: Many[PromptSpec] = Field(default=(), max_length=2000, description="Held-out prompts; empty: none.")
    images_per_prompt: int = Field(default=4, ge=1, le=64)
    seed: int = 1234
    best_by: str | None = Field(
        default=None,
        max_length=129,
        description="Score (`reward` or `reward.part`) whose best checkpoint is kept; absent: a held-out reward's.",
    )


class TrainSpec(Spec):
    """Everything the training loop needs to know."""

    model: str = Field(
        default="tiny-turbo",
        min_length=1,
        max_length=512,
        description="A known name, a folder under DIPOLE_MODELS_DIR, or a hub id in the local cache.",
    )
    revision: str | None = Field(default=None, max_length=128, description="Of the model, where it is a hub id.")
    features: FeaturesSpec = FeaturesSpec()
    prompts: Many[PromptSpec] = Field(default=(), max_length=1_000_000)
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
    rewards: Many[RewardSpec] = Field(default=(), max_length=32)
    method: MethodSpec = Field(default_factory=MethodSpec)
    steps: int = Field(default=1000, ge=1)
    candidates: int = Field(default=24, ge=2, le=64, description="K: images per prompt and update.")
    prompts_per_step: int = Field(
        default=8, ge=1, le=1024, description="Prompts of one accumulation window, all devices."
    )
    max_staleness: int = Field(default=0, ge=0, le=16, description="Windows that generation may run ahead of updates.")
    tune: Literal["lora", "full"] = Field(default="lora", description="Train an adapter, or every weight of the U-Net.")
    lora: LoraSpec = LoraSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    evaluation: EvalSpec = EvalSpec()
    checkpoint_every: int = Field(default=100, ge=1)
    keep_checkpoints: int = Field(default=3, ge=1, description="The newest so many are kept, and the best.")
    record_candidates: bool = Field(
        default=False,
        description="Keep every candidate's latents with its scores (32 KB an image at 512²), for replays.",
    )
    export_merged: bool = Field(default=False, description="Export the whole pipeline too, adapter merged.")
    chunk_size: int = Field(
        default=8,
        ge=1,
        description="Samples that are worked on at once; memory, not maths. Halved when memory runs out.",
    )
    compile: bool = Field(
        default=False, description="torch.compile the U-Net: minutes at start, faster steps on a GPU."
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32",
        description="Of the frozen base. fp32 is exact, and slow on GPUs: there take bf16. What is trained stays fp32.",
    )
    resolution: int | None = Field(
        default=None, ge=8, le=2048, multiple_of=8, description="Side of the images in pixels; absent: the model's own."
    )
    seed: int = Field(default=0, ge=0, lt=2**63)

    @property
    def offline(self) -> bool:
        """Whether it trains on recorded preferences, and asks no reward."""
        return self.pairs_file is not None or self.replay_job is not None

    @model_validator(mode="after")
    def _belongs_together(self) -> TrainSpec:
        self._groups_fit()
        self._source_fits()
        self._settings_are_used()
        names = [reward.name for reward in self.rewards]
        if len(set(names)) != len(names):
            raise InvalidInput("rewards: names must be unique within a job", field="rewards")
        return self

    def _groups_fit(self) -> None:
        kind, own = self.method.type, self.method.settings
        if (
            isinstance(own, DrpoSpec | DpoSpec)
            and self.pairs_file is None
            and own.positives + own.negatives > self.candidates
        ):
            raise InvalidInput(
                f"method.{kind}.positives + method.{kind}.negatives = {own.positives + own.negatives} exceeds "
                f"candidates = {self.candidates}: lower them or draw more candidates",
                field=f"method.{kind}.positives",
            )
        if isinstance(own, GrpoSpec) and own.anchors > self.candidates:
            raise InvalidInput(
                f"method.grpo.anchors = {own.anchors} exceeds candidates = {self.candidates}: anchors are candidates",
                field="method.grpo.anchors",
            )

    def _settings_are_used(self) -> None:
        """What nothing would look at is a mistake, not a wish."""
        space = self.features.type
        unused = ["weights", "revision"] if space in ("latents", "tiny", "teacher_unet") else []
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

    def check_side(self, side: int) -> None:
        """Raises InvalidInput where a group of images of this side is more than a reward can be sent."""
        groups = {
            "candidates": 0 if self.offline else self.candidates,
            "evaluation.images_per_prompt": self.evaluation.images_per_prompt if self.evaluation.prompts else 0,
        }
        most = MAX_GROUP_BYTES // (3 * side**2)
        for field, count in groups.items():
            if self.rewards and count > most:
                raise InvalidInput(
                    f"{field} = {count}: a reward can be sent {most} images of {side}×{side} pixels at once",
                    field=field,
                )

    def _source_fits(self) -> None:
        if self.pairs_file is not None and self.replay_job is not None:
            raise InvalidInput("give pairs_file or replay_job, not both", field="replay_job")
        if not self.offline:
            if not self.prompts:
                raise InvalidInput("prompts: a job needs at least one", field="prompts")
            if not any(reward.weight > 0 for reward in self.rewards):
                raise InvalidInput(
                    "rewards: at least one needs weight > 0, the others may be held out with weight 0", field="rewards"
                )
        if self.pairs_file is not None and self.method.type not in ("drpo", "dpo", "sft"):
            raise InvalidInput(
                f"method.type {self.method.type!r} needs scores of the model's own samples; pairs train drpo, dpo, sft",
                field="method.type",
            )
        if self.offline and self.max_staleness:
            raise InvalidInput("max_staleness must be 0 where no reward is waited for", field="max_staleness")

    @classmethod
    def stored(cls, text: str) -> TrainSpec:
        """A job's spec from the store. Raises InvalidInput: another version may have written what this one refuses."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            message = f"this version cannot read the job's settings: {field or 'spec'}: {first['msg']}; create it anew"
            raise InvalidInput(message, field=field or None) from None


def asks_rewards(spec: TrainSpec) -> bool:
    """Whether a job's rewards are ever asked: those of an offline job are in evaluations alone."""
    return not spec.offline or bool(spec.evaluation.prompts)
