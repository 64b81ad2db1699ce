"""Rankings that were answered with 202: their state, their result, their cancellation, and the signed callback.

The state is the truth and a callback only a courtesy: it is tried a few times, then a poll still finds the result.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import httpx
import stamina
import structlog
from standardwebhooks.webhooks import Webhook

from dipole import web
from dipole.errors import Conflict, InvalidInput, NotFound, Overloaded
from dipole.protocol.schemas import ItemError, PendingRanking, Ranking
from dipole_rewards.reward import Scores
from dipole_rewards.settings import RewardSettings

State = Ranking | PendingRanking
Submitted = asyncio.Future[Scores]
Rank = Callable[[Submitted, str], Awaitable[Ranking]]
CALLBACK_ATTEMPTS, CALLBACK_TIMEOUT_S = 5, 10.0

log = structlog.get_logger()


class PendingRankings:
    """At most `limit` rankings, running or finished; finished ones make room, oldest first."""

    def __init__(self, limit: int, deliver: Callable[[str, State], Coroutine[Any, Any, None]]) -> None:
        self._limit, self._deliver = limit, deliver
        self._states: OrderedDict[str, State] = OrderedDict()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._deliveries: set[asyncio.Task[None]] = set()

    def start(self, submit: Callable[[], Submitted], rank: Rank, callback_url: str | None) -> PendingRanking:
        """`submit` a group now and `rank` it in the background.

        Raises Overloaded when every place is taken by a running one, and whatever `submit` raises.
        """
        full = len(self._states) >= self._limit
        finished = next((i for i in self._states if i not in self._tasks), None) if full else None
        if full and finished is None:
            raise Overloaded(f"{self._limit} rankings are pending already", retry_after=10)
        identifier = f"rank_{uuid.uuid4().hex}"
        submitted = submit()
        if finished is not None:
            del self._states[finished]
        pending = PendingRanking(id=identifier)
        self._states[identifier] = pending
        task = asyncio.create_task(self._run(identifier, submitted, rank, callback_url))
        self._tasks[identifier] = task

        def ended(_: asyncio.Task[None]) -> None:  # also when it was cancelled before it began
            submitted.cancel()
            del self._tasks[identifier]

        task.add_done_callback(ended)
        return pending

    def get(self, identifier: str) -> State:
        if identifier not in self._states:
            raise NotFound(f"there is no ranking {identifier!r}; it may have been dropped since it finished")
        return self._states[identifier]

    def cancel(self, identifier: str) -> State:
        """Cancel what runs; cancelling twice is fine. Raises Conflict when the ranking has finished."""
        state = self.get(identifier)
        if isinstance(state, Ranking) or state.status == "failed":
            raise Conflict(f"ranking {identifier!r} has finished and cannot be cancelled")
        if state.status == "pending":
            self._states[identifier] = PendingRanking(id=identifier, status="cancelled")
            self._tasks[identifier].cancel()
        return self._states[identifier]

    def is_lost(self, identifier: str) -> bool:
        """Whether nothing can be had of it any more: it failed, was cancelled, or made room for another."""
        state = self._states.get(identifier)
        return state is None or state.status in ("failed", "cancelled")

    async def close(self) -> None:
        running = [*self._tasks.values(), *self._deliveries]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _run(self, identifier: str, submitted: Submitted, rank: Rank, callback_url: str | None) -> None:
        state: State
        try:
            state = await rank(submitted, identifier)
        except asyncio.CancelledError:
            self._states[identifier] = PendingRanking(id=identifier, status="cancelled")
            raise
        except Exception as error:  # the failure is the caller's answer: it waits in the state
            document, _ = web.problem_of(error)
            log.warning("pending_ranking_failed", ranking=identifier, error=repr(error))
            reason = ItemError(code=document.type.rpartition(":")[2], message=document.detail or document.title)
            state = PendingRanking(id=identifier, status="failed", error=reason)
        self._states[identifier] = state
        if callback_url is not None:
            delivery = asyncio.create_task(self._deliver(callback_url, state))
            self._deliveries.add(delivery)
            delivery.add_done_callback(self._deliveries.discard)


def check_callback_url(url: str | None, settings: RewardSettings) -> None:
    """Raises InvalidInput unless `url` names an allowed host, plainly."""
    if url is None:
        return
    if not settings.reward_callback_hosts:
        raise InvalidInput(
            "callback_url: this endpoint sends no callbacks; leave it out and poll", field="callback_url"
        )
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError:
        raise InvalidInput(f"callback_url {url!r} is not a URL", field="callback_url") from None
    if parts.scheme not in ("http", "https") or not host or parts.username is not None:
        raise InvalidInput("callback_url must be http(s)://host/… without user or password", field="callback_url")
    if host not in settings.reward_callback_hosts:
        raise InvalidInput(f"callback_url: host {host!r} is not on this endpoint's allow-list", field="callback_url")


async def deliver_callback(
    url: str, state: State, *, secret: str, transport: httpx.AsyncBaseTransport | None = None
) -> None:
    """POST a Standard-Webhooks-signed event; retried under one message id, never redirected; then given up."""
    body = _event(state)
    message_id, webhook = f"msg_{state.id}", Webhook(secret)
    try:
        async with httpx.AsyncClient(transport=transport, timeout=CALLBACK_TIMEOUT_S, follow_redirects=False) as client:
            async for attempt in stamina.retry_context(on=httpx.HTTPError, attempts=CALLBACK_ATTEMPTS, timeout=None):
                with attempt:
                    now = datetime.now(UTC)
                    headers = {
                        "content-type": "application/json",
                        "webhook-id": message_id,
                        "webhook-timestamp": str(int(now.timestamp())),
                        "webhook-signature": webhook.sign(message_id, now, body),
                    }
                    response = await client.post(url, content=body, headers=headers)
                    if not response.is_success:
                        raise httpx.HTTPStatusError(
                            f"callback answered {response.status_code}", request=response.request, response=response
                        )
    except httpx.HTTPError as error:
        log.warning("callback_given_up", ranking=state.id, error=repr(error))


def _event(state: State) -> str:
    kind = "completed" if isinstance(state, Ranking) else state.status
    stamp = datetime.fromtimestamp(time.time(), UTC).isoformat()
    data = state.model_dump_json(exclude_none=False)
    return f'{{"type":"ranking.{kind}","timestamp":"{stamp}","data":{data}}}'
