"""What a training job is asked to do. REST, the command line, the dashboard and the docs derive from these models.

A knob is declared here once, typed, with its default and the reason beside it. No torch.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, Field, JsonValue, ValidationError, model_validator

from dipole.errors import InvalidInput

Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")]
Positive = Annotated[float, Field(gt=0)]

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
    weight: float = Field(default=1.0, ge=0, description="0 holds the reward out: it is watched, never trained on.")
    required: bool = Field(
        default=True, description="A required reward pauses the job when it fails past its deadline."
    )
    timeout_s: Positive = Field(default=60.0, le=7 * 24 * 3600, description="Deadline of one group, retries included.")
    normalize: Literal["zscore", "rank", "none"] = "zscore"
    min_valid: int = Field(
        default=2, ge=1, description="With fewer scored candidates the group's ranking is a failure."
    )


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
    shuffle_ranks: bool = Field(default=False, description="The control: train on randomly permuted ranks.")


class MethodSpec(Spec):
    type: Literal["drpo"] = "drpo"
    drpo: DrpoSpec = DrpoSpec()


class LoraSpec(Spec):
    rank: int = Field(default=16, ge=1, le=1024)
    alpha: float = Field(default=16.0, gt=0)
    target_modules: Many[str] = ("to_q", "to_k", "to_v", "to_out.0")


class OptimizerSpec(Spec):
    """AdamW. The rate rises linearly over `warmup_steps`, and falls linearly over the last `decay_steps`."""

    lr: Positive = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
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


class TrainSpec(Spec):
    """Everything the training loop needs to know."""

    model: str = Field(
        default="tiny-turbo", min_length=1, max_length=512, description="A known name or a pipeline folder."
    )
    features: Name = "auto"
    prompts: Many[PromptSpec] = Field(min_length=1, max_length=1_000_000)
    rewards: Many[RewardSpec] = Field(min_length=1, max_length=32)
    method: MethodSpec = MethodSpec()
    steps: int = Field(default=1000, ge=1)
    candidates: int = Field(default=24, ge=2, le=64, description="K: images per prompt and update.")
    prompts_per_step: int = Field(default=8, ge=1, le=1024, description="Prompts of one accumulation window.")
    max_staleness: int = Field(default=0, ge=0, le=16, description="Windows that generation may run ahead of updates.")
    lora: LoraSpec = LoraSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    evaluation: EvalSpec = EvalSpec()
    checkpoint_every: int = Field(default=100, ge=1)
    keep_checkpoints: int = Field(default=3, ge=1)
    chunk_size: int = Field(
        default=8, ge=1, description="Samples per chunk of the update's second pass; memory, not maths."
    )
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    seed: int = Field(default=0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _groups_fit(self) -> TrainSpec:
        drpo = self.method.drpo
        if drpo.positives + drpo.negatives > self.candidates:
            raise InvalidInput(
                f"method.drpo.positives + method.drpo.negatives = {drpo.positives + drpo.negatives} exceeds "
                f"candidates = {self.candidates}: lower them or draw more candidates",
                field="method.drpo.positives",
            )
        if not any(reward.weight > 0 for reward in self.rewards):
            raise InvalidInput(
                "rewards: at least one needs weight > 0, the others may be held out with weight 0", field="rewards"
            )
        names = [reward.name for reward in self.rewards]
        if len(set(names)) != len(names):
            raise InvalidInput("rewards: names must be unique within a job", field="rewards")
        return self

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
