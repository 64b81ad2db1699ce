"""Settings of one reward service, from environment variables with the prefix `DIPOLE_`; docs/SETTINGS.md lists them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from dipole.protocol.schemas import MAX_BODY_BYTES, MAX_CANDIDATES, MAX_PIXELS
from dipole.settings import CandidateMemorySettings, Keys


class WeightSettings(BaseSettings):
    """What a reward with weights reads for itself when it loads: the app knows of no reward's files."""

    model_config = SettingsConfigDict(env_prefix="DIPOLE_", extra="ignore", hide_input_in_errors=True)

    reward_weights: Path | None = Field(default=None, description="Folder of the reward's weights, where it has any.")
    reward_dtype: Literal["bf16", "fp32"] = Field(
        default="bf16", description="Precision that the weights are computed in."
    )
    reward_state: Path | None = Field(
        default=None,
        description="Folder for what a reward with weights writes, recorded-scores.json; the folder of its weights "
        "if unset.",
    )


class OcrSettings(BaseSettings):
    """Reward `ocr`."""

    model_config = SettingsConfigDict(env_prefix="DIPOLE_", extra="ignore", hide_input_in_errors=True)

    ocr_lenient: bool = Field(
        default=False, description="Give 1 where the text is contained in what was read, whatever else the image says."
    )


class StyleSettings(WeightSettings):
    """Reward `style`."""

    style_images: Path | None = Field(
        default=None,
        description="Folder of the pictures whose style is wanted; `pictures` in the folder of the weights if unset.",
    )
    style_nearest: int = Field(
        default=5, ge=1, description="How many of the pictures, the nearest ones, an image is compared with."
    )


class RewardSettings(WeightSettings, CandidateMemorySettings):
    """Which reward, where it listens, and how much it takes at once."""

    reward: str = Field(description="The reward: a short name, as in `pickscore`, or module:Class.")
    reward_host: str = Field(default="127.0.0.1", description="Address to listen on; any but loopback needs a key.")
    reward_port: int = Field(default=8401, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    reward_name: str | None = Field(
        default=None, max_length=64, description="Name in /v1/info; the class's own if unset."
    )
    reward_device: str = Field(
        default="auto", description="Where weights go: cpu, cuda, cuda:1; auto is cuda where torch sees a GPU."
    )
    reward_key: Keys | None = Field(
        default=None, description="Bearer key that callers must send. Commas separate several, any of which opens."
    )

    reward_vae: Path | None = Field(
        default=None,
        description="Folder of the VAE of the model that is trained, or of its pipeline; with it, candidates are taken "
        "as latents of this VAE too, and decoded here. Needs torch and diffusers.",
    )
    reward_vae_dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto",
        description="Precision that the VAE decodes in, which must be that of the jobs: auto is what a job has by "
        "default, bf16 on a GPU that has it and fp32 elsewhere.",
    )
    reward_max_candidates: int = Field(default=MAX_CANDIDATES, ge=1, description="Most candidates in one request.")
    reward_max_pixels: int = Field(
        default=MAX_PIXELS, ge=1, description="Most pixels of one image; it is refused by its header, before decoding."
    )
    reward_max_total_pixels: int = Field(
        default=2**27, ge=1, description="Most pixels of one request, all images together."
    )
    reward_max_body_bytes: int = Field(default=MAX_BODY_BYTES, ge=1024, description="Most bytes of one request's body.")
    reward_held_body_bytes: int = Field(
        default=2**29,
        ge=1024,
        description="Most bytes of bodies of requests that are not answered yet, all together; past it 503.",
    )
    reward_body_timeout_s: float = Field(default=60.0, gt=0, description="Seconds a request body may take to arrive.")
    reward_answer_timeout_s: float = Field(
        default=300.0, gt=0, description="Seconds until a waiting caller gets a 503."
    )
    reward_queue_depth: int = Field(default=32, ge=1, description="Groups that may wait for the model; past it 503.")
    reward_queue_bytes: int = Field(
        default=2**30, ge=1, description="Bytes of decoded images that may wait; past it 503."
    )
    reward_batch_images: int = Field(
        default=32, ge=1, description="Images of waiting groups that become one forward; a larger group is one alone."
    )
    reward_batch_wait_ms: float = Field(
        default=3.0,
        ge=0,
        le=60_000,  # infinity, which no thread can wait for, would end it
        description="Milliseconds that a group waits to be batched with others, unless half of a batch waits already.",
    )
    reward_max_pending: int = Field(default=1000, ge=1, description="Rankings answered with 202 that are kept at once.")
    reward_idempotency_entries: int = Field(
        default=1024, ge=1, description="Answers kept for repeated Idempotency-Keys."
    )

    reward_callback_hosts: Annotated[list[str], NoDecode] = Field(
        default=[], description="Hosts a callback_url may name, comma-separated; empty refuses callbacks."
    )
    reward_callback_secret: SecretStr | None = Field(
        default=None, description="Standard Webhooks secret (whsec_…) that signs callbacks."
    )

    @field_validator("reward_callback_hosts", mode="before")
    @classmethod
    def _split_hosts(cls, value: Any) -> Any:
        return [host.strip() for host in value.split(",") if host.strip()] if isinstance(value, str) else value
