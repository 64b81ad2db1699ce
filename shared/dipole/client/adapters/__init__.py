"""Kinds of reward servers, one small file each, chosen by `kind` where an endpoint is described."""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple

from dipole.client.adapters.base import EndpointAdapter, EndpointOptions
from dipole.client.adapters.cosmos_rl import CosmosRlAdapter, CosmosRlOptions
from dipole.client.adapters.dipole import DipoleAdapter, DipoleOptions
from dipole.client.adapters.flow_factory import FlowFactoryAdapter, FlowFactoryOptions
from dipole.client.adapters.unirl import UnirlAdapter, UnirlOptions
from dipole.client.adapters.vllm import VllmAdapter, VllmOptions

EndpointKind = Literal["dipole", "vllm-score", "unirl-score", "cosmos-rl-reward", "flow-factory-compute"]


class _KnownKind(NamedTuple):
    options: type[EndpointOptions]
    adapter: type[EndpointAdapter[Any]]


KINDS: Final[dict[EndpointKind, _KnownKind]] = {
    "dipole": _KnownKind(DipoleOptions, DipoleAdapter),
    "vllm-score": _KnownKind(VllmOptions, VllmAdapter),
    "unirl-score": _KnownKind(UnirlOptions, UnirlAdapter),
    "cosmos-rl-reward": _KnownKind(CosmosRlOptions, CosmosRlAdapter),
    "flow-factory-compute": _KnownKind(FlowFactoryOptions, FlowFactoryAdapter),
}
