"""Dependencies of the routes: the stores, authentication, scopes.

ApiState                  the stores behind the routes, made once by create_app
AuthenticationMiddleware  ASGI: who calls, decided before any body is read; 401 without a valid key
require_scope(scope)      a dependency of a route: 403 without the scope
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import httpx
from anyio import CapacityLimiter
from fastapi import Depends, Path, Request
from pydantic import BaseModel, ConfigDict, Field

from dipole.broker.endpoint_statistics import EndpointRecord
from dipole.settings import ApiSettings
from dipole_trainer.api.admission import ReadinessProbe
from dipole_trainer.api.event_notifier import EventNotifier
from dipole_trainer.api.event_stream import EventReader
from dipole_trainer.database.engine import Database
from dipole_trainer.jobs.ranking_ledger import RankingLedger
from dipole_trainer.jobs.store import JobStore
from dipole_trainer.ranking.withdrawable_rankings import WithdrawableRankings
from dipole_trainer.registry.api_keys import ApiKeys
from dipole_trainer.registry.audit_log import AuditLog
from dipole_trainer.registry.files import FileRegistry
from dipole_trainer.registry.rewards import RewardRegistry
from dipole_trainer.registry.workers import WorkerRegistry
from dipole_trainer.storage.artifacts import ArtifactStore


@dataclass(frozen=True)
class ApiState:
    settings: ApiSettings
    database: Database
    jobs: JobStore
    files: FileRegistry
    rewards: RewardRegistry
    workers: WorkerRegistry
    readiness: ReadinessProbe
    api_keys: ApiKeys
    audit_log: AuditLog
    ledger: RankingLedger
    endpoint_record: EndpointRecord
    withdrawable_rankings: WithdrawableRankings
    artifacts: ArtifactStore
    event_notifier: EventNotifier
    open_streams: CapacityLimiter
    event_reader: EventReader
    reward_transport: httpx.BaseTransport | None


def _api_state(request: Request) -> ApiState:
    state = request.app.state.api
    assert isinstance(state, ApiState)
    return state


State = Annotated[ApiState, Depends(_api_state)]
JobId = Annotated[str, Path(max_length=64, description="The job's id.", examples=["ftjob-0b5e7f2c9a4d1e8f63b7c2a5"])]


class ListQuery(BaseModel):
    """What every list is asked with: a misspelt name is an error, and no page of something else."""

    model_config = ConfigDict(extra="forbid")

    api_version: str | None = Field(
        default=None, alias="api-version", max_length=64, description="Sent by Azure's clients; it is not used."
    )


class PageQuery(ListQuery):
    """Cursor pagination, as OpenAI's: `after` is the id of the last object of the page before."""

    after: str | None = Field(default=None, max_length=64, description="Id of the last object already seen.")
    limit: int = Field(default=20, ge=1, le=100, description="Number of objects on a page.")
