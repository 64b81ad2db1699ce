"""Kinds of reward servers, one small file each, chosen by `kind` where an endpoint is described."""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple

from dipole.client.adapters.base import Adapter, Options
from dipole.client.adapters.dipole import DipoleAdapter, DipoleOptions
from dipole.client.adapters.unirl import UnirlAdapter, UnirlOptions
from dipole.client.adapters.vllm import VllmAdapter, VllmOptions

Kind = Literal["dipole", "vllm-score", "unirl-score"]


class _Known(NamedTuple):
    options: type[Options]
    adapter: type[Adapter[Any]]


KINDS: Final[dict[Kind, _Known]] = {
    "dipole": _Known(DipoleOptions, DipoleAdapter),
    "vllm-score": _Known(VllmOptions, VllmAdapter),
    "unirl-score": _Known(UnirlOptions, UnirlAdapter),
}
