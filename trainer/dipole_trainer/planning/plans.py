"""What a plan says: the fields of `dipole plan --json` and of the API's answer. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on the device; `total` is their sum, `usable` what the device has for tensors."""

    weights: int
    optimizer: int
    groups: int
    prompts: int
    peak_phase: int
    total: int
    usable: int


@dataclass(frozen=True)
class JobPlan:
    """Everything in bytes, seconds, and 10¹² operations (`teraflop`)."""

    model: str
    is_published_shape: bool
    device: str
    precision: str
    chunk_size: int
    memory: MemoryPlan
    fits: bool
    largest_chunk: int  # 0: not even one sample
    phases: dict[str, dict[str, float]]  # teraflop an update and peak_bytes, by phase
    teraflop_per_update: float
    images_per_update: int
    seconds_per_update: tuple[float, float]
    hours: tuple[float, float]
    ranking_requests_per_update: int  # to each reward
    images_per_request: int
    requests_per_minute: tuple[float, float]  # that a reward must answer, so that nobody waits for it
    disk_bytes: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
