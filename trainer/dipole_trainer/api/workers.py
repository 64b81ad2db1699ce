"""/v1/workers: who trains, and what each can load. What a job needs is looked for here when it is created."""

from __future__ import annotations

from fastapi import APIRouter

from dipole_trainer.api import schemas
from dipole_trainer.api.auth import require_scope
from dipole_trainer.api.dependencies import State

router = APIRouter(prefix="/v1/workers", tags=["workers"], dependencies=[require_scope("train")])


@router.get("", summary="List workers that live, and what each can load")
def list_workers(state: State) -> schemas.Paged[schemas.WorkerObject | schemas.UnreadableObject]:
    """The list has the workers that gave a sign of life lately, with their devices and the weights on their
    machines.
    """
    return schemas.page_of(schemas.show_rows(state.workers.list_live(), schemas.to_worker_object), False)
