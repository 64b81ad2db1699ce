"""A step's groups: each candidate's scores, the order they gave, what attracted and what repelled, and small images."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Response
from pydantic import Field

from dipole.errors import InvalidInput, NotFound
from dipole_trainer.api import schemas
from dipole_trainer.api.auth import require_scope
from dipole_trainer.api.dependencies import ApiState, JobId, ListQuery, State
from dipole_trainer.api.schemas import ApiModel
from dipole_trainer.datasets import recordings
from dipole_trainer.datasets.recordings import RecordedGroup
from dipole_trainer.jobs.group_orders import ToldOrder, tell_order
from dipole_trainer.ranking.weight_changes import RewardSchedule
from dipole_trainer.spec import MAX_COUNT
from dipole_trainer.storage import job_layout

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["jobs"], dependencies=[require_scope("train")])
Step = Annotated[int, Path(ge=0, le=MAX_COUNT, description="The step that the group was drawn for.")]
GroupIndex = Annotated[int, Path(ge=0, le=1023, description="The group's place in its step.")]
PREVIEW_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/webp": {}}, "description": "Small images side by side, in the order of the seeds."}
}


class GroupsQuery(ListQuery):
    """Which step's groups, and where to go on in a step of many."""

    step: int | None = Field(default=None, ge=0, le=MAX_COUNT, description="From 0; absent: the newest ranked step.")
    after: int = Field(default=0, ge=0, le=2**62, description="`cursor` of the last group already seen.")
    limit: int = Field(default=8, ge=1, le=64, description="Number of groups on a page.")


class GroupOrderObject(ApiModel):
    """Combined scores and the rows of the best and the worst, best and worst first."""

    total: list[float | None] = Field(description="In the order of the seeds; null for a candidate without.")
    positives: list[int] = Field(description="Rows of the candidates that attracted, the best first.")
    negatives: list[int] = Field(description="Rows of the candidates that repelled, the worst first.")
    skipped: str | None = Field(description="Why the group was not trained on.")
    unknown: str | None = Field(description="Why the order cannot be told.")


class GroupObject(ApiModel):
    """K candidates of one prompt. `rewards` are as the ledger has them, scores in the order of `seeds`."""

    object: Literal["fine_tuning.job.group"] = Field(
        default="fine_tuning.job.group", description="What kind of object this is."
    )
    cursor: int = Field(description="Place of the group in the ledger: send it as `after` to go on behind it.")
    group: str = Field(description="Id of the group within its job.")
    index: int = Field(description="Place of the group in its step.")
    step: int = Field(description="The step that the group was drawn for.")
    prompt: str = Field(description="Text that the candidates were drawn for.")
    seeds: list[int] = Field(description="Seeds of the candidates' noises, one each.")
    rewards: dict[str, dict[str, Any]] = Field(description="What each reward answered, by its name.")
    order: GroupOrderObject = Field(description="What the rewards' answers came to.")
    preview: str | None = Field(description="Where its small images are, relative to the API's base URL.")


class GroupsPage(ApiModel):
    """Groups of one step."""

    object: Literal["list"] = Field(default="list", description="What kind of object this is.")
    data: list[GroupObject] = Field(description="Groups of this page.")
    has_more: bool = Field(description="Whether the step has more groups after this page.")
    step: int | None = Field(description="The step they are of; null where none was ranked.")
    first_step: int | None = Field(description="The first step that a group was ranked for; null where none was.")
    last_step: int | None = Field(description="The newest step that a group was ranked for; null where none was.")


@router.get("/{job_id}/groups", summary="A step's groups: scores, order, what attracted and what repelled")
def list_groups(state: State, job_id: JobId, query: Annotated[GroupsQuery, Query()]) -> GroupsPage:
    """The answer shows what the model is taught at a step: each group's candidates in the order that the rewards
    gave them.
    """
    job = schemas.to_job_object(state.jobs.get_job(job_id))
    span = state.ledger.ranked_steps(job_id)
    if span is None:
        return GroupsPage(data=[], has_more=False, step=None, first_step=None, last_step=None)
    step = span[1] if query.step is None else query.step
    entries, more = state.ledger.list_groups(job_id, step=step, after=query.after, limit=query.limit)
    recorded, previews = _read_recording(state, job_id, step)
    data = []
    for entry in entries:
        index = int(entry["group"].rpartition(".")[2])
        order = tell_order(
            entry,
            RewardSchedule(job.rewards, job.weight_changes).at(step),
            job.method,
            seed=job.seed,
            candidates=job.candidates,
            recorded=recorded.get(index),
        )
        kept = ("cursor", "group", "step", "prompt", "seeds", "rewards")
        data.append(
            GroupObject(
                **{name: entry[name] for name in kept},
                index=index,
                order=_show_order(order),
                preview=f"v1/fine_tuning/jobs/{job_id}/groups/{step}/{index}/preview" if index in previews else None,
            )
        )
    return GroupsPage(data=data, has_more=more, step=step, first_step=span[0], last_step=span[1])


@router.get(
    "/{job_id}/groups/{step}/{index}/preview",
    summary="A recorded group's candidates, small and side by side",
    response_class=Response,
    responses=PREVIEW_RESPONSE,
)
def read_group_preview(state: State, job_id: JobId, step: Step, index: GroupIndex) -> Response:
    """The answer is one image with the group's candidates side by side; there is one where the job records
    candidates.
    """
    with state.artifacts.open_file(_recording_path(state.jobs.get_job(job_id).id, step)) as file:
        content = recordings.read_preview(file, index)
    headers = {"x-content-type-options": "nosniff", "cache-control": "private, no-cache"}
    return Response(content, media_type="image/webp", headers=headers)


def _recording_path(job_id: str, step: int) -> str:
    name = job_layout.candidates_file_name(step)
    return job_layout.job_path(job_id, f"{job_layout.CANDIDATES_FOLDER}/{name}")


def _read_recording(state: ApiState, job_id: str, step: int) -> tuple[dict[int, RecordedGroup], set[int]]:
    """What was recorded of a step by the groups' indices, and which have a preview; nothing where nothing was."""
    try:
        with state.artifacts.open_file(_recording_path(job_id, step)) as file:
            told = recordings.read_recorded_step(file)
            file.seek(0)
            return {group.index: group for group in told.groups}, recordings.previewed_groups(file)
    except (NotFound, InvalidInput):
        return {}, set()


def _show_order(order: ToldOrder) -> GroupOrderObject:
    return GroupOrderObject(
        total=list(order.total),
        positives=list(order.positives),
        negatives=list(order.negatives),
        skipped=order.skipped,
        unknown=order.unknown,
    )
