"""/v1/fine_tuning/plan: what a job will take, asked with the body that would create it. A sampler plans."""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from dipole_trainer.api import files, schemas
from dipole_trainer.api.audit import changes_nothing
from dipole_trainer.api.auth import require_scope
from dipole_trainer.api.dependencies import ApiState, ListQuery, State
from dipole_trainer.api.initial_weights import find_initial_weights
from dipole_trainer.api.job_requests import JobRequest, fields_of_hyperparameters, resolve_replay
from dipole_trainer.api.json_route import JSONRoute
from dipole_trainer.api.sampler_client import PlannedJob, SamplerClient
from dipole_trainer.planning.plans import JobPlan
from dipole_trainer.spec import TrainSpec, choose_steps

PLAN_DESCRIPTION = (
    "The body is that of creating a job; what says nothing of its cost, such as prompts and rewards, may be missing. "
    "`data` is what `dipole plan --json` prints, a plan for each device. A sampler (`dipole serve sampler`) plans, in "
    "seconds to a minute; without one, or when it is busy for too long, the answer is 503. An answer is kept for ten "
    "minutes."
)
KEPT_S = 600.0  # weights that are fetched meanwhile may be of another shape than the published one
MAX_KEPT = 256
# of a request, what decides nothing: parts that may be large, or that a planner does not know
UNPLANNED_FIELDS = frozenset({"prompts", "evaluation", "rewards", "initial_checkpoint"})


class PlanQuery(ListQuery):
    """What is planned for."""

    device: list[Annotated[str, Field(max_length=64)]] = Field(
        default=[],
        max_length=16,
        description="Cards by name, such as `rtx-4090`; `here` measures the sampler's machine.",
    )
    chunk_size: int | None = Field(default=None, ge=1, le=4096, description="Plan for this, not the job's.")


class PlanObject(schemas.ApiModel):
    """What a job will take; `data` is a plan for each device, `remarks` what the numbers do not say."""

    object: Literal["fine_tuning.plan"] = Field(default="fine_tuning.plan", description="What kind of object this is.")
    data: list[JobPlan] = Field(description="Plans, one for each device.")
    remarks: list[str] = Field(description="What the numbers do not say, in sentences.")


def create_router(samplers: SamplerClient) -> APIRouter:
    routes = APIRouter(
        prefix="/v1/fine_tuning/plan", tags=["jobs"], dependencies=[require_scope("train")], route_class=JSONRoute
    )
    kept = PlanCache()

    @routes.post("", summary="Plan a job", description=PLAN_DESCRIPTION, responses={503: {}})
    @changes_nothing
    async def plan_job(
        state: State, body: JobRequest, query: Annotated[PlanQuery, Query()], request: Request
    ) -> PlanObject:
        job = await run_in_threadpool(_planned_fields, state, body)
        key = _digest([job, query.device, query.chunk_size])
        planned = kept.get(key)
        if planned is None:
            planned = await samplers.plan_job(job, query.device, query.chunk_size, request.is_disconnected)
            kept.put(key, planned)
        return PlanObject.model_validate({"data": planned.plans, "remarks": planned.remarks})

    return routes


class PlanCache:
    """The newest MAX_KEPT plans, each for KEPT_S seconds; used by the event loop alone."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[float, PlannedJob]] = OrderedDict()

    def get(self, key: str) -> PlannedJob | None:
        until, planned = self._kept.get(key, (0.0, None))
        return planned if time.monotonic() < until else None

    def put(self, key: str, planned: PlannedJob) -> None:
        self._kept.pop(key, None)
        self._kept[key] = (time.monotonic() + KEPT_S, planned)
        while len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)


def _planned_fields(state: ApiState, body: JobRequest) -> dict[str, Any]:
    """The fields of a job that decide its cost, of a base by name. Raises InvalidInput."""
    given = body.model_fields_set & TrainSpec.model_fields.keys() - UNPLANNED_FIELDS
    job = body.model_dump(mode="json", include=set(given), exclude_unset=True)
    if (initial := find_initial_weights(state, body.model)) is not None:
        values = initial.spec_values({name: getattr(body, name) for name in given})
        job |= {name: values[name] for name in ("model", "revision", "resolution") if values.get(name) is not None}
    count = len(body.prompts)
    if body.replay_job:
        job |= resolve_replay(state, body, body.replay_job).values
    elif file_id := body.training_file or body.pairs_file:
        file = files.find_file(state, file_id, field="training_file" if body.training_file else "pairs_file")
        count = file.lines
        if file.kind == "pairs":
            job["pairs_file"] = file.id
    if count and body.hyperparameters is not None:
        values = fields_of_hyperparameters(body, count, body.prompts_per_step)
        job |= {name: values[name] for name in ("steps", "prompts_per_step") if name in values}
    elif body.hyperparameters is not None and body.hyperparameters.batch_size != "auto":
        job["prompts_per_step"] = body.hyperparameters.batch_size
    if count and "steps" not in job:
        per_step = job.get("prompts_per_step", body.prompts_per_step)
        job["steps"] = choose_steps(count, per_step, of_pairs="pairs_file" in job)
    return job


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
