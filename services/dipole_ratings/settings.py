"""Settings of the rating service, from environment variables with the prefix `DIPOLE_`; docs/SETTINGS.md lists them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from dipole.protocol.schemas import MAX_BODY_BYTES, MAX_PIXELS
from dipole.settings import Keys

OnTimeout = Literal["partial", "drop"]


class RatingsSettings(BaseSettings):
    """The rating service: where it listens, what a task asks of people, and for how long things are kept."""

    model_config = SettingsConfigDict(env_prefix="DIPOLE_", extra="ignore", hide_input_in_errors=True)

    home: Path = Field(
        default=Path(".dipole"),
        description="Folder of one machine's platform: where the ratings database lies unless told otherwise.",
    )
    ratings_host: str = Field(default="127.0.0.1", description="Address to listen on; any but loopback needs a key.")
    ratings_port: int = Field(default=8450, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    ratings_database_url: str = Field(
        default_factory=lambda chosen: f"sqlite:///{chosen['home'] / 'ratings.db'}",
        description="URL of the ratings database: SQLite's, or PostgreSQL's, which replicas of the service share.",
    )
    ratings_key: Keys | None = Field(
        default=None,
        description="Bearer key that trainers must send, and operators without their own; commas separate several.",
    )
    ratings_operator_key: Keys | None = Field(
        default=None, description="Bearer key of operators, where it is not that of trainers."
    )
    ratings_name: str = Field(default="people", min_length=1, max_length=64, description="Name in /v1/info.")
    ratings_revision: str = Field(
        default="1", min_length=1, max_length=255, description="model_revision in /v1/info: change it with the raters."
    )

    ratings_min: int = Field(default=1, ge=1, le=100, description="Ratings that a task asks for, unless it says more.")
    ratings_max: int = Field(
        default=3, ge=1, le=100, description="Most ratings of a task whose raters disagree or leave images uncompared."
    )
    ratings_deadline_s: float = Field(
        default=86400.0, gt=0, le=31_536_000, description="Seconds after which a task is closed, unless it says others."
    )
    ratings_on_timeout: OnTimeout = Field(
        default="partial",
        description="What a deadline does: `partial` scores what answers there are, `drop` fails the ranking.",
    )
    ratings_images_shown: int = Field(
        default=4, ge=2, le=6, description="Most images that a rater orders at once; larger groups are split."
    )
    ratings_lease_s: float = Field(
        default=600.0, ge=1, le=86400, description="Seconds that a rater holds a task, from the last sign of life."
    )
    ratings_lease_max_s: float = Field(
        default=3600.0, ge=1, le=604800, description="Most seconds that a task is held, however often it is extended."
    )
    ratings_heartbeat_s: float = Field(
        default=60.0, ge=1, le=3600, description="Seconds between the signs of life that a rater's page is asked for."
    )
    ratings_undo_s: float = Field(
        default=10.0,
        ge=0,
        le=3600,
        description="Seconds in which a task's last answer may be undone; then it is sent.",
    )
    ratings_gold_share: float = Field(
        default=0.05,
        ge=0,
        le=0.5,
        description="Share of tasks on whose order others agreed before, to know a rater by.",
    )
    ratings_repeat_share: float = Field(
        default=0.05, ge=0, le=0.5, description="Share of tasks that a rater is shown again, in another order."
    )
    ratings_session_days: float = Field(
        default=30.0, gt=0, le=365, description="Days until a rater's browser must follow the invitation again."
    )
    ratings_retention_days: float = Field(
        default=365.0, gt=0, le=36500, description="Days that a finished task, its images and answers are kept."
    )

    ratings_max_candidates: int = Field(default=24, ge=2, le=64, description="Most candidates in one request.")
    ratings_max_pixels: int = Field(
        default=MAX_PIXELS, ge=1, description="Most pixels of one image; it is refused by its header, before decoding."
    )
    ratings_max_total_pixels: int = Field(
        default=2**27, ge=1, description="Most pixels of one request, all images together."
    )
    ratings_max_body_bytes: int = Field(default=MAX_BODY_BYTES, ge=1024, description="Most bytes of a request's body.")
    ratings_held_body_bytes: int = Field(
        default=2**29,
        ge=1024,
        description="Most bytes of bodies of requests that are not answered yet, all together; past it 503.",
    )
    ratings_max_pending: int = Field(default=10_000, ge=1, description="Most tasks that wait for raters; past it 503.")

    ratings_callback_hosts: Annotated[list[str], NoDecode] = Field(
        default=[], description="Hosts a callback_url may name, comma-separated; empty refuses callbacks."
    )
    ratings_callback_secret: SecretStr | None = Field(
        default=None, description="Standard Webhooks secret (whsec_…) that signs callbacks."
    )

    @field_validator("ratings_callback_hosts", mode="before")
    @classmethod
    def _split_hosts(cls, value: Any) -> Any:
        return [host.strip() for host in value.split(",") if host.strip()] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_counts(self) -> RatingsSettings:
        if self.ratings_max < self.ratings_min:
            raise ValueError("ratings_max must not be less than ratings_min: raise it")
        return self
