"""Settings shared by the platform's processes, from environment variables with the prefix `DIPOLE_`.

docs/SETTINGS.md lists them all; a test keeps it true.
"""

from __future__ import annotations

import base64
import re
import socket
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from dipole.errors import ConfigurationError
from dipole.redis_url import parse_redis_url

FOLLOWS_FROM_WRONG = "default_factory_not_called"
"""pydantic's kind of error of a default that follows from other fields, one of which is wrong: nobody gave it."""
SettingsT = TypeVar("SettingsT", bound=BaseSettings)


MIN_KEY_CHARACTERS = 16
MIN_WEBHOOK_SECRET_BYTES, WEBHOOK_SECRET_PREFIX = 24, "whsec_"


def split_keys(setting: SecretStr | str | None) -> list[str]:
    """Keys of a setting that holds one, or several separated by commas: the first is sent, and any of them opens."""
    text = setting.get_secret_value() if isinstance(setting, SecretStr) else setting or ""
    return [key.strip() for key in text.split(",") if key.strip()]


def sent_key(key: str) -> str:
    """The key that a caller sends who holds one or several."""
    return next(iter(split_keys(key)), key)


def _check_keys(setting: SecretStr) -> SecretStr:
    keys = split_keys(setting)
    if not keys or any(len(key) < MIN_KEY_CHARACTERS for key in keys):
        raise ValueError(f"a key must have at least {MIN_KEY_CHARACTERS} characters, and commas separate several")
    return setting


Keys = Annotated[SecretStr, AfterValidator(_check_keys)]
"""A server's key, or several while it is rotated."""


def _check_webhook_secrets(setting: SecretStr) -> SecretStr:
    for secret in split_keys(setting):
        try:
            length = len(base64.b64decode(secret.removeprefix(WEBHOOK_SECRET_PREFIX), validate=True))
        except ValueError:
            length = 0
        if not secret.startswith(WEBHOOK_SECRET_PREFIX) or length < MIN_WEBHOOK_SECRET_BYTES:
            raise ValueError(
                f"a secret must be {WEBHOOK_SECRET_PREFIX} and base64 of {MIN_WEBHOOK_SECRET_BYTES} bytes or more "
                "(docs/webhooks.md makes one), and commas separate several"
            )
    return setting


WebhookSecret = Annotated[SecretStr, AfterValidator(_check_webhook_secrets)]
"""What signs webhooks, as Standard Webhooks has it, or several while it is rotated; what is empty is none."""


def load_settings(kind: type[SettingsT], **overrides: Any) -> SettingsT:
    """Settings from `overrides` and the environment, or ConfigurationError that names each wrong variable."""
    try:
        return kind(**overrides)
    except ValidationError as error:
        wrong = [
            f"DIPOLE_{'.'.join(map(str, each['loc'])).upper()}: {each['msg'].removeprefix('Value error, ')}"
            for each in error.errors()
            if each["type"] != FOLLOWS_FROM_WRONG
        ]
        raise ConfigurationError("; ".join(wrong)) from error


class CandidateMemorySettings(BaseSettings):
    """Where groups' images wait: of the platform, and of reward services on its machine."""

    model_config = SettingsConfigDict(env_prefix="DIPOLE_", extra="ignore", hide_input_in_errors=True)

    candidate_store: Literal["auto", "redis", "memory"] = Field(
        default="auto",
        description="Where a group's images wait for the rewards: in `redis`, or in this machine's `memory`, which is "
        "faster. `auto` is memory while every rank worker reads the same folder, and Redis otherwise. A reward service "
        "that reads that folder too is sent no images, unless this is `redis` for it.",
    )
    candidate_dir: Path = Field(
        default=Path("/dev/shm"),  # noqa: S108 (a folder of the user's own is made in it)
        description="Folder in memory (a tmpfs) for images in flight; each user has a folder of its own there. A group "
        "that would take more than half of the room that is left goes to Redis.",
    )


class PlatformSettings(CandidateMemorySettings):
    """What the API, the trainer worker, the rank worker and the sampler agree on."""

    model_config = SettingsConfigDict(env_prefix="DIPOLE_", extra="ignore", hide_input_in_errors=True)

    home: Path = Field(
        default=Path(".dipole"),
        description="Folder of one machine's platform: where the database, artifacts and models lie unless they are "
        "told to lie elsewhere.",
    )
    redis_url: str = Field(
        default="redis://127.0.0.1:6379/0",
        description="URL of the Redis that holds messages, answers and images in flight: "
        "`redis://[user]:[password]@host:6379/0`, `rediss://…` over TLS, or `unix:///path?db=0`. Certificates are "
        "verified: `?ssl_ca_certs=FILE` names a CA of one's own, `ssl_certfile` and `ssl_keyfile` a client's; "
        "`ssl_cert_reqs=none` verifies nothing.",
    )
    database_url: str = Field(
        default_factory=lambda chosen: f"sqlite:///{chosen['home'] / 'dipole.db'}",
        description="URL of the jobs database: SQLite's, or PostgreSQL's with any of libpq's parameters.",
    )
    artifacts_url: str = Field(
        default_factory=lambda chosen: str(chosen["home"] / "artifacts"),
        description="Folder of checkpoints and samples, or fsspec's URL of one in a store, as in s3://bucket/folder.",
    )
    candidate_ttl_s: int = Field(default=3600, ge=60, description="Seconds a group's images stay in Redis.")
    candidates_max_gib: float = Field(
        default=3.0,
        gt=0,
        description="Most GiB of a job's candidates in flight; where they wait needs as much, and so does the trainer. "
        "In memory a reward on this machine holds what it has not ranked beyond that.",
    )
    score_cache_groups: int = Field(
        default=50_000,
        ge=0,
        description="Most groups whose scores workers keep in the database for equal groups of other jobs, of rewards "
        "that are deterministic alone; 0 keeps none, and deletes what was kept when a job begins.",
    )
    reward_hosts: Annotated[list[str], NoDecode] = Field(
        default=["127.0.0.1", "localhost"],
        description="Hosts a reward URL may name, comma-separated; `*.` allowed. Rank workers ask no other.",
    )
    tls_dir: Path | None = Field(
        default=None, description="Folder of certificates: an endpoint's `tls` names a folder in it (docs/rewards.md)."
    )
    lease_s: float = Field(
        default=30.0, gt=0, description="Seconds without a heartbeat after which a job is taken over."
    )
    models_dir: Path = Field(
        default_factory=lambda chosen: chosen["home"] / "models",
        description="Folder whose subfolders are base models that a job may name.",
    )

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: str) -> str:
        parse_redis_url(value)
        return value

    def health_file(self, name: str) -> Path:
        """What a process of this host touches while it is healthy, and stack/container_probe.py looks at."""
        return self.home / f"{name}-{socket.gethostname()}.health"

    @property
    def worker_health_file(self) -> Path:
        return self.health_file("worker")

    @field_validator("reward_hosts", "webhook_hosts", mode="before", check_fields=False)
    @classmethod
    def _split_hosts(cls, value: Any) -> Any:
        return [host.strip() for host in value.split(",") if host.strip()] if isinstance(value, str) else value


class SecretsSettings(BaseSettings):
    """Whoever reads endpoints' keys: the API, the trainer worker, the rank worker, `dipole eval`."""

    model_config = SettingsConfigDict(env_prefix="DIPOLE_", extra="ignore", hide_input_in_errors=True)

    secrets_key: SecretStr | None = Field(
        default=None,
        min_length=1,
        description="Fernet key that endpoints' keys lie encrypted with, in database and Redis; commas rotate it.",
    )


class MetricsSettings(BaseSettings):
    """Where the worker, the rank worker and the sampler, which serve no other HTTP, answer /metrics."""

    model_config = SettingsConfigDict(env_prefix="DIPOLE_", extra="ignore", hide_input_in_errors=True)

    metrics_host: str = Field(
        default="127.0.0.1", description="Address to answer Prometheus on. It needs no key, as /metrics of the API."
    )
    metrics_port: int | None = Field(
        default=None,
        ge=1,
        le=65533,
        description="Port to answer Prometheus on; none if unset. Under `dipole up` it is the rank worker's, and the "
        "next two are the sampler's and the worker's.",
    )


class TracingSettings(BaseSettings):
    """Where every process sends its traces (docs/tracing.md)."""

    model_config = SettingsConfigDict(
        env_prefix="DIPOLE_", env_ignore_empty=True, extra="ignore", hide_input_in_errors=True
    )

    otlp_endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s@]+$",
        max_length=2048,
        description="URL of an OpenTelemetry collector that takes OTLP over HTTP, as `http://collector:4318`; nothing "
        "is traced if unset. OpenTelemetry's own variables say the rest, as `OTEL_TRACES_SAMPLER`.",
    )


class DownloadSettings(BaseSettings):
    """`dipole models fetch` and `dipole rewards prepare`."""

    model_config = SettingsConfigDict(env_prefix="DIPOLE_", extra="ignore", hide_input_in_errors=True)

    weights_dir: Path = Field(
        default=Path("weights"), description="Folder with a folder for each reward's weights, which `prepare` fills."
    )
    weights_table: Path | None = Field(
        default=None,
        description="Table of repositories, revisions and checksums instead of the built-in one, in the same form "
        "(shared/dipole/downloads/published.toml): for files that lie elsewhere.",
    )


class RankWorkerSettings(PlatformSettings):
    """The rank worker."""

    rank_threads: int = Field(
        default=8, ge=1, le=256, description="Most requests in flight for each reward and rank worker."
    )


class SamplerSettings(PlatformSettings):
    """The sampler."""

    sampler_models: int = Field(
        default=2,
        ge=1,
        le=64,
        description="Most models that a sampler keeps loaded; the least recently used one goes first.",
    )


_RATE_LIMIT = re.compile(r"\s*[1-9]\d{0,8}\s*/\s*([1-9]\d{0,4}\s*)?(second|minute|hour|day)s?\s*")


def _check_rate_limit(value: str) -> str:
    if not all(_RATE_LIMIT.fullmatch(each) for each in value.split(";")):
        raise ValueError("must look like 600/minute, or 20/second;36000/hour")
    return value


class ApiSettings(PlatformSettings):
    """The trainer API."""

    api_host: str = Field(default="127.0.0.1", description="Address to listen on; any but loopback needs a key.")
    api_port: int = Field(default=8400, ge=1, le=65535, description="Port to listen on.")
    api_tls_cert: Path | None = Field(
        default=None,
        description="File of the certificate, PEM, with which the API speaks HTTPS; HTTP if unset (docs/tls.md).",
    )
    api_tls_key: Path | None = Field(default=None, description="File of the certificate's key, PEM, without password.")
    api_key: Keys | None = Field(
        default=None, description="Admin key; required on any address but loopback. Commas separate several."
    )
    webhook_hosts: Annotated[list[str], NoDecode] = Field(
        default=[],
        description="Hosts that a job's `notify` may name, comma-separated; `*.` allowed. Empty refuses `notify`.",
    )
    webhook_secret: WebhookSecret | None = Field(
        default=None,
        description="Standard Webhooks secret (whsec_…) that webhooks of ended jobs are signed with. Commas separate "
        "several while it is rotated: each signs.",
    )
    rewards_file: Path | None = Field(
        default=None, description="File of reward endpoints that are registered when the API starts (docs/rewards.md)."
    )
    ratings_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s]+$",
        max_length=2048,
        description="URL at which browsers reach the rating service, for the dashboard's link to its operator's page; "
        "unset: the one that it is registered with.",
    )
    api_max_file_bytes: int = Field(
        default=2**30, ge=1024, description="Most bytes of one uploaded file of prompts or pairs."
    )
    api_max_body_bytes: int = Field(default=16 * 2**20, ge=1024, description="Most bytes of any other request's body.")
    api_rate_limit: Annotated[str, AfterValidator(_check_rate_limit)] | None = Field(
        default=None,
        description="How often each key may ask, as `600/minute`, or `20/second;36000/hour`, which both hold; past it "
        "429 is answered. Counted in Redis over all API processes; no limit if unset.",
    )
    audit_days: int = Field(
        default=365, ge=1, le=36500, description="Days that entries of the audit log are kept (`GET /v1/audit`)."
    )
    api_max_streams: int = Field(default=200, ge=1, le=1000, description="Most event streams that are open at once.")
    sampler_timeout_s: float = Field(
        default=120.0, ge=1, le=3600, description="Seconds that a request for images waits for a sampler."
    )
    sampler_queue: int = Field(
        default=16, ge=1, le=1000, description="Most requests for images that may wait at once, over all API processes."
    )
    sampler_max_side: int = Field(
        default=1024, ge=8, le=2048, description="Largest side of an image that may be asked for, in pixels."
    )
