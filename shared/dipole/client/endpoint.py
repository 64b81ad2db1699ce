"""Where a reward is and how it is asked: one description, from registration to the exchange.

    Endpoint(url="https://judge.lan:8000", kind="vllm-score", options={"model": "Qwen/Qwen3-VL-Reranker-2B"}, tls="lan")

REST, the command line, rewards.toml, the database, a run's record in Redis and the client carry these fields. `key` is
shown by none of them but the record, where it is sealed (dipole.vault).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping
from typing import Annotated, Any
from urllib.parse import urlsplit

import httpx
from pydantic import (
    ConfigDict,
    Field,
    JsonValue,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from dipole.client.adapters import KINDS, EndpointKind
from dipole.client.adapters.base import EndpointOptions
from dipole.errors import InvalidInput
from dipole.protocol.schemas import StrictModel
from dipole.protocol.validation import blamed_field, first_error

# No dot and no slash: it names a folder under DIPOLE_TLS_DIR.
TlsName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


ASKING_OPTIONS = ("timeout_s", "colocated")  # say how it is asked, and nothing of what it answers


class EndpointAddress(StrictModel):
    """What a caller may say of an endpoint anywhere. Whether its host is allowed is for `check_reward_url` to say.

    What is wrong with one is said without what was given: that holds its key.
    """

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    url: str = Field(max_length=2048, description="Base URL; its host must be one of DIPOLE_REWARD_HOSTS.")
    kind: EndpointKind = Field(
        default="dipole", description="Kind of server at the URL: Dipole's ranking protocol, or another's."
    )
    options: dict[str, JsonValue] = Field(
        default={},
        description="Options of the kind: dipole takes `colocated`, vllm-score takes `model`, unirl-score and "
        "cosmos-rl-reward need `reward`.",
    )

    @model_validator(mode="after")
    def _check_options(self) -> EndpointAddress:
        parse_options(self.kind, self.options)
        return self


class Endpoint(EndpointAddress):
    """An endpoint with its secrets, as it is registered and asked."""

    key: SecretStr | None = Field(default=None, max_length=4096, description="Bearer key sent to it; never shown.")
    tls: TlsName | None = Field(
        default=None, description="Folder in DIPOLE_TLS_DIR with the CA and the client certificate for it."
    )

    @field_validator("key")
    @classmethod
    def _check_key(cls, key: SecretStr | None) -> SecretStr | None:
        text = key.get_secret_value() if key else ""
        if not (text.isascii() and text.isprintable()):
            raise ValueError("must be printable ASCII: it is sent in a header")
        return key if text else None

    @model_validator(mode="after")
    def _check_tls(self) -> Endpoint:
        if self.tls is not None and urlsplit(self.url).scheme.lower() != "https":
            raise InvalidInput(
                "tls is given, but the URL does not begin with https://: change one of them", field="tls"
            )
        return self

    def answer_identity(self) -> list[Any]:
        """What of it decides what an answer means."""
        return [
            self.url,
            self.kind,
            {name: value for name, value in self.options.items() if name not in ASKING_OPTIONS},
        ]

    @property
    def is_colocated(self) -> bool:
        """Whether it is to sleep while nothing is to be ranked."""
        return bool(getattr(parse_options(self.kind, self.options), "colocated", False))

    def to_record(self) -> dict[str, Any]:
        """All of it as JSON, the key too: for places that nobody is shown."""
        return {**self.model_dump(mode="json"), "key": self.key.get_secret_value() if self.key else None}

    @classmethod
    def from_values(cls, values: Mapping[str, Any], *, field: str = "") -> Endpoint:
        """An Endpoint of these values. Raises InvalidInput that names the first wrong one below `field`."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise InvalidInput(first_error(error, field).sentence, field=blamed_field(error, field)) from None


def parse_options(kind: EndpointKind, given: Mapping[str, JsonValue]) -> EndpointOptions:
    """The kind's own options, checked. Raises InvalidInput."""
    known = KINDS[kind].options
    try:
        return known.model_validate(dict(given))
    except ValidationError as error:
        first = first_error(error, "options")
        takes = ", ".join(known.model_fields) or "none"
        raise InvalidInput(f"{first.sentence}; kind {kind!r} takes the options {takes}", field=first.path) from None


# ---- the URL ----------------------------------------------------------------------------------------------------


def check_url(url: str, *, field: str = "url") -> str:
    """The base URL without a trailing slash. Raises InvalidInput unless it is plain HTTP(S) of host, port and path.

    What is said of a wrong one does not repeat it: it may hold a password.
    """
    try:
        parts, asked = urlsplit(url), httpx.URL(url)  # what asks must take it too, and read the same in it
        host, port = parts.hostname, parts.port
    except (ValueError, httpx.InvalidURL) as error:
        raise InvalidInput(f"{field} is not a URL: {type(error).__name__}", field=field) from None
    if parts.scheme not in ("http", "https") or not host or port == 0:
        raise InvalidInput(f"{field} must look like http://host:port", field=field)
    if "@" in parts.netloc or any(char in url for char in "?#\\") or any(char <= " " for char in url):
        raise InvalidInput(f"{field} may hold a host, a port and a path, nothing else", field=field)
    if not host.isascii() or asked.raw_host.decode() != host.lower():
        raise InvalidInput(f"{field} must name its host in plain ASCII (xn--… for others)", field=field)
    return url.rstrip("/")


def check_reward_url(url: str, hosts: Collection[str], *, field: str) -> str:
    """As `check_url`; raises InvalidInput too unless one of `hosts` allows its host and port."""
    return check_allowed_url(url, hosts, field=field, setting="DIPOLE_REWARD_HOSTS")


def check_allowed_url(url: str, hosts: Collection[str], *, field: str, setting: str) -> str:
    """As `check_reward_url`, for whatever else a caller may name: `setting` is where `hosts` were set."""
    base = check_url(url, field=field)
    parts = urlsplit(base)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    if not any(_host_matches(allowed, host, port) for allowed in hosts):
        raise InvalidInput(f"{field} names {host} port {port}, which {setting} does not allow", field=field)
    return base


def _host_matches(allowed: str, host: str, port: int) -> bool:
    """`*.` stands for any host below a domain, `:port` for one port only; nothing else is a pattern."""
    name, _, only = allowed.rpartition(":")
    # no port, or an IPv6 address without one
    if not only.isdecimal() or (":" in name and not name.endswith("]")):
        name, only = allowed, ""
    name, host = _canonical_host(name), _canonical_host(host)
    fits = host.endswith(name[1:]) and len(host) > len(name) - 1 if name.startswith("*.") else host == name
    return fits and (not only or int(only) == port)


def _canonical_host(host: str) -> str:
    """Of the ways to write a host the one that is compared: lower case, no root dot, IPv6 in its short form."""
    host = host.lower().strip("[]").removesuffix(".")
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host
