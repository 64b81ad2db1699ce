"""A job's figures as curves, for whoever plots them: the dashboard, notebooks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import Field

from dipole_trainer.api.auth import require_scope
from dipole_trainer.api.dependencies import JobId, ListQuery, State
from dipole_trainer.api.schemas import ApiModel
from dipole_trainer.jobs.curves import read_curves

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["jobs"], dependencies=[require_scope("train")])


class MetricsQuery(ListQuery):
    """How fine the curves are."""

    points: int = Field(
        default=1000, ge=1, le=5000, description="Most points of a curve, about; 1: the newest figures alone."
    )


class Curve(ApiModel):
    """Figures in the order of their steps, each as its event's `data`, with `created_at` in Unix seconds."""

    total: int = Field(description="Number of steps, or of evaluations, that there are.")
    every: int = Field(description="One in so many of them is in `data`, and the newest.")
    data: list[dict[str, Any]] = Field(description="The figures, oldest first.")


class JobMetrics(ApiModel):
    """A job's figures. Where a step was trained again after a crash, the last word counts."""

    object: Literal["fine_tuning.job.metrics"] = Field(
        default="fine_tuning.job.metrics", description="What kind of object this is."
    )
    job_id: str = Field(description="Id of the job.")
    cursor: int = Field(description="The newest event looked at: send it as `Last-Event-ID` to follow from here.")
    steps: Curve = Field(description="Figures of the job's steps.")
    evaluations: Curve = Field(description="Figures of the job's evaluations.")
    skipped: list[dict[str, Any]] = Field(description="Why groups were skipped, and how many: `reason`, `count`.")
    failures: list[dict[str, Any]] = Field(description="Rewards left out of groups: `reward`, `reason`, `count`.")


@router.get("/{job_id}/metrics", summary="A job's curves: figures of its steps and evaluations, thinned")
def read_job_metrics(state: State, job_id: JobId, query: Annotated[MetricsQuery, Query()]) -> JobMetrics:
    """The answer has the figures of steps and evaluations, thinned to about as many points as are asked for."""
    state.jobs.get_job(job_id)
    found = read_curves(state.database, job_id, points=query.points)
    return JobMetrics(
        job_id=job_id,
        cursor=found.cursor,
        steps=Curve(**found.steps.to_json()),
        evaluations=Curve(**found.evaluations.to_json()),
        skipped=list(found.skipped),
        failures=list(found.failures),
    )
