"""Settings of reward `judge`, which it reads for itself when it loads: the app knows of none of them."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from dipole.web.auth import is_loopback

RESERVED_FIELDS = {"messages", "model", "n", "stream", "response_format", "logprobs", "top_logprobs"}


class JudgeSettings(BaseSettings):
    """The VLM judge."""

    model_config = SettingsConfigDict(env_prefix="DIPOLE_", extra="ignore", hide_input_in_errors=True)

    judge_insecure: bool = Field(
        default=False, description="Allow http to other machines: key, prompts and images travel unencrypted."
    )
    judge_url: str = Field(description="Base URL of the chat endpoint, up to /v1: https, or http on this machine.")
    judge_key: SecretStr | None = Field(default=None, min_length=1, description="The endpoint's API key.")
    judge_model: str = Field(min_length=1, max_length=200, description="The model's name at the endpoint.")
    judge_model_revision: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="Revision of the model; if unset, what the endpoint calls itself.",
    )

    judge_mode: Literal["pointwise", "pairwise", "listwise", "questions"] = Field(
        default="pointwise",
        description="Whether images are judged alone, two at a time, all at once, or by the questions in the metadata.",
    )
    judge_rubric: str = Field(
        default="prompt_alignment",
        description="prompt_alignment, aesthetics, text_rendering, or the path of a text file of your own; the mode "
        "questions has none.",
    )
    judge_orders: int = Field(
        default=2, ge=1, le=16, description="Number of orders in which listwise shows the images, each also reversed."
    )
    judge_max_side: int = Field(
        default=1024,
        ge=28,
        le=4096,
        description="Most pixels of an image's longer side; larger images are scaled down.",
    )
    judge_max_tokens: int = Field(default=512, ge=1, description="Most tokens of one JSON answer, thoughts included.")
    judge_logprobs: bool | None = Field(
        default=None,
        description="Whether pointwise and questions read log probabilities, or numbers that the judge writes; "
        "tried out if unset.",
    )
    judge_json_schema: bool | None = Field(
        default=None, description="Whether the form of answers is sent as `response_format`; tried out if unset."
    )
    judge_extra: Annotated[dict[str, Any], NoDecode] = Field(
        default={},
        description='JSON object added to every request, as {"reasoning_effort": "low"}; null leaves a field out.',
    )

    judge_concurrency: int = Field(
        default=16, ge=1, le=1024, description="Most requests in flight, of all groups together."
    )
    judge_requests_per_minute: float | None = Field(
        default=None, gt=0, description="Most requests a minute, evenly spaced; without a limit if unset."
    )
    judge_call_timeout_s: float = Field(default=30.0, gt=0, description="Seconds one request may take.")
    judge_deadline_s: float = Field(
        default=50.0, gt=0, description="Seconds one group may take; keep it below the `timeout_s` of the job's reward."
    )
    judge_retries: int = Field(
        default=3,
        ge=0,
        le=20,
        description="How often a failed request is repeated; 429 and 503 are repeated up to the deadline.",
    )
    judge_usd_per_million_prompt_tokens: float | None = Field(
        default=None,
        ge=0,
        description="Price in US dollars, for `cost_usd` in a ranking's usage; give both prices or none.",
    )
    judge_usd_per_million_completion_tokens: float | None = Field(
        default=None,
        ge=0,
        validate_default=True,
        description="Price in US dollars, for `cost_usd` in a ranking's usage; give both prices or none.",
    )

    @field_validator("judge_key")
    @classmethod
    def _check_key(cls, key: SecretStr | None) -> SecretStr | None:
        """Without the line's end of the file that it came from; an HTTP client repeats a key that it cannot send."""
        if key is None:
            return None
        bare = key.get_secret_value().strip()
        if not bare or not all("!" <= char <= "~" for char in bare):
            raise ValueError("must be of ASCII's letters, digits and signs, without blanks between them")
        return SecretStr(bare)

    @field_validator("judge_url")
    @classmethod
    def _check_url(cls, url: str, others: ValidationInfo) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or not url.isprintable() or " " in url:
            raise ValueError("must read like https://api.openai.com/v1 or http://127.0.0.1:8000/v1")
        _ = parts.port  # which raises ValueError where it is none
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("must hold neither a key nor a query: the key is DIPOLE_JUDGE_KEY")
        if parts.scheme == "http" and not is_loopback(parts.hostname) and not others.data.get("judge_insecure"):
            raise ValueError("must be https: set DIPOLE_JUDGE_INSECURE=true to send everything unencrypted")
        return url

    @field_validator("judge_extra", mode="before")
    @classmethod
    def _parse_extra(cls, extra: Any) -> Any:
        return json.loads(extra) if isinstance(extra, str) else extra

    @field_validator("judge_extra")
    @classmethod
    def _check_extra(cls, extra: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(RESERVED_FIELDS & extra.keys()):
            raise ValueError(f"{', '.join(taken)} cannot be set: the judge depends on it")
        return extra

    @field_validator("judge_usd_per_million_completion_tokens")
    @classmethod
    def _check_prices(cls, price: float | None, others: ValidationInfo) -> float | None:
        if (price is None) != (others.data.get("judge_usd_per_million_prompt_tokens") is None):
            raise ValueError("set the prices of prompt and completion tokens, or neither")
        return price
