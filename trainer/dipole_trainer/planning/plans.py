"""What a plan says: the fields of `dipole plan --json` and of the API's answer. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import Field


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on the device; `total` is their sum, `usable` what the device has for tensors. Without kept graphs."""

    weights: Annotated[int, Field(description="Weights of all networks.")]
    optimizer: Annotated[int, Field(description="The optimizer's moments, and the sum of gradients.")]
    groups: Annotated[int, Field(description="Groups that are in flight.")]
    prompts: Annotated[int, Field(description="Embeddings of the prompts.")]
    peak_phase: Annotated[int, Field(description="The phase that takes most, while it runs.")]
    total: Annotated[int, Field(description="Sum of the parts.")]
    usable: Annotated[int, Field(description="What of the device's memory tensors may have.")]


@dataclass(frozen=True)
class GraphPlan:
    """Graphs of drawn samples that are kept for their gradient. All 0 where the job or its method keeps none."""

    kept: Annotated[int, Field(description="Number of an update's samples whose graphs are kept (`memory`).")]
    bytes_each: Annotated[int, Field(description="Memory that one sample's graph takes, in bytes.")]
    total: Annotated[int, Field(description="Memory that the job takes with them, in bytes; `memory.total` without.")]
    saved_teraflop: Annotated[
        float, Field(description="Operations of a second pass that an update is spared by them, in 10¹².")
    ]


@dataclass(frozen=True)
class JobPlan:
    """Everything in bytes, seconds, and 10¹² operations (`teraflop`)."""

    model: Annotated[str, Field(description="Model that the plan is for.")]
    is_published_shape: Annotated[
        bool, Field(description="Whether the shape is the published one, as the model's own files are not there.")
    ]
    device: Annotated[str, Field(description="Device that the plan is for.")]
    precision: Annotated[str, Field(description="Precision of the frozen base.")]
    chunk_size: Annotated[int, Field(description="Number of samples that are worked on at once.")]
    memory: Annotated[MemoryPlan, Field(description="Memory that the job takes without kept graphs, in bytes.")]
    graphs: Annotated[GraphPlan, Field(description="Graphs that are kept where there is room for them.")]
    fits: Annotated[bool, Field(description="Whether `memory.total` is within `memory.usable`.")]
    largest_chunk: Annotated[int, Field(description="Largest chunk size that fits; 0 where not even one sample does.")]
    phases: Annotated[
        dict[str, dict[str, float]],
        Field(
            description="Operations of an update (`teraflop`) and memory (`peak_bytes`), by phase, without kept graphs."
        ),
    ]
    teraflop_per_update: Annotated[float, Field(description="Operations of an update, in 10¹², with what is spared.")]
    images_per_update: Annotated[int, Field(description="Number of images that an update draws and trains on.")]
    seconds_per_update: Annotated[tuple[float, float], Field(description="Seconds that an update takes, from and to.")]
    hours: Annotated[
        tuple[float, float], Field(description="Hours that the job takes, from and to, without waiting for rewards.")
    ]
    ranking_requests_per_update: Annotated[int, Field(description="Number of requests of an update to each reward.")]
    images_per_request: Annotated[int, Field(description="Number of images in each request to a reward.")]
    requests_per_minute: Annotated[
        tuple[float, float],
        Field(description="Requests that a reward must answer each minute so that nobody waits, from and to."),
    ]
    disk_bytes: Annotated[int, Field(description="Disk that checkpoints, exports and recordings take, in bytes.")]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
