"""/v1/rewards/{name}/rating_queue: how groups wait at people, for an endpoint that is our rating service.

Its own page shows the rest and is linked to: raters one by one, invitations, deliveries to send again. Asked is a
registered endpoint alone, with the key that it is registered with, and what it answers is bounded and checked.
"""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, Field

from dipole.client import tls
from dipole.client.circuit_breaker import CircuitBreaker
from dipole.client.connection import Deadline, EndpointConnection, EndpointError
from dipole.client.endpoint import Endpoint, check_reward_url, check_url
from dipole.errors import ConfigurationError, InvalidInput
from dipole.protocol.rating_queue import OPERATOR_PAGE, STATUS_PATH, QueueReport
from dipole_trainer.api.auth import require_scope
from dipole_trainer.api.dependencies import ApiState, State
from dipole_trainer.api.rewards import CHECK_TIMEOUT_S, RewardName

MAX_ANSWER_BYTES = 256 * 2**10
router = APIRouter(prefix="/v1/rewards", tags=["rewards"])


class RatingQueue(BaseModel):
    """The queue of an endpoint that is a rating service; all null for one that is none."""

    object: str = Field(default="reward.rating_queue", description="It is always `reward.rating_queue`.")
    name: str = Field(description="Name of the reward.")
    queue: QueueReport | None = Field(description="The queue's figures; null where there are none.")
    problem: str | None = Field(description="Why there are no figures of a rating service, in a sentence.")
    operator_url: str | None = Field(description="Its own page, for browsers: raters, invitations, deliveries.")


@router.get(
    "/{name}/rating_queue",
    summary="How groups wait at people, where an endpoint is a rating service",
    dependencies=[require_scope("train")],
)
def read_rating_queue(state: State, name: RewardName) -> RatingQueue:
    """The endpoint is asked for its figures with the key that it is registered with."""
    url = state.rewards.get_reward(name).url
    check_reward_url(url, state.settings.reward_hosts, field="url")  # the allow-list may have changed since
    queue = problem = None
    try:
        endpoint = state.rewards.get_endpoint(name)
        queue = _fetch_queue(state, endpoint) if endpoint.kind == "dipole" else None
    except (EndpointError, ConfigurationError, InvalidInput) as error:
        if not (isinstance(error, EndpointError) and error.http_status == 404):
            problem = str(error)
    if queue is None and problem is None:
        return RatingQueue(name=name, queue=None, problem=None, operator_url=None)
    page = (state.settings.ratings_url or url).rstrip("/") + OPERATOR_PAGE
    return RatingQueue(name=name, queue=queue, problem=problem, operator_url=page)


def _fetch_queue(state: ApiState, endpoint: Endpoint) -> QueueReport:
    """Raises EndpointError, of status 404 where the endpoint is no rating service."""
    connection = EndpointConnection(
        check_url(endpoint.url),
        key=endpoint.key.get_secret_value() if endpoint.key else None,
        verify=tls.ssl_context(endpoint.tls, state.settings.tls_dir),
        transport=state.reward_transport,
        breaker=CircuitBreaker(),
        max_answer_bytes=MAX_ANSWER_BYTES,
    )
    with connection.http:
        _, answer = connection.send_request("GET", f"{connection.base_url}{STATUS_PATH}", Deadline(CHECK_TIMEOUT_S))
        return connection.parse_message(QueueReport, answer)
