"""Rankings that were answered with 202, in memory: state, result, cancellation, and the signed callback.

The stored state is what counts. A callback is tried a few times; if it never arrives, a poll still finds the result.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from dipole.errors import Conflict, NotFound, Overloaded
from dipole.protocol import problems
from dipole.protocol.schemas import ItemError, PendingRanking, Ranking
from dipole_rewards.server.ranking_backend import RankingState

SubmittedGroup = asyncio.Future[Any]  # whoever ranks resolves it, and knows what to
AwaitRanking = Callable[[SubmittedGroup, str], Awaitable[Ranking]]

log = structlog.get_logger()


class PendingRankings:
    """At most `limit` rankings, running or finished; finished ones make room, oldest first."""

    def __init__(self, limit: int, deliver: Callable[[str, RankingState], Coroutine[Any, Any, None]]) -> None:
        self._limit, self._deliver_callback = limit, deliver
        self._states: OrderedDict[str, RankingState] = OrderedDict()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._deliveries: set[asyncio.Task[None]] = set()

    def start(
        self, submit: Callable[[], SubmittedGroup], rank: AwaitRanking, callback_url: str | None
    ) -> PendingRanking:
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
        task = asyncio.create_task(self._run_ranking(identifier, submitted, rank, callback_url))
        self._tasks[identifier] = task

        def forget_task(_: asyncio.Task[None]) -> None:  # also when it was cancelled before it began
            submitted.cancel()
            del self._tasks[identifier]

        task.add_done_callback(forget_task)
        return pending

    def get(self, identifier: str) -> RankingState:
        if identifier not in self._states:
            raise NotFound(f"there is no ranking {identifier!r}; it may have been dropped since it finished")
        return self._states[identifier]

    def cancel(self, identifier: str) -> PendingRanking:
        """Cancel what runs; cancelling twice is fine. Raises Conflict when the ranking has finished."""
        state = self.get(identifier)
        if isinstance(state, Ranking) or state.status == "failed":
            raise Conflict(f"ranking {identifier!r} has finished and cannot be cancelled")
        cancelled = PendingRanking(id=identifier, status="cancelled")
        if state.status == "pending":
            self._states[identifier] = cancelled
            self._tasks[identifier].cancel()
        return cancelled

    def is_lost(self, identifier: str) -> bool:
        """Whether it will never give a result: it failed, was cancelled, or made room for another."""
        state = self._states.get(identifier)
        return state is None or state.status in ("failed", "cancelled")

    async def close(self) -> None:
        running = [*self._tasks.values(), *self._deliveries]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _run_ranking(
        self, identifier: str, submitted: SubmittedGroup, rank: AwaitRanking, callback_url: str | None
    ) -> None:
        state: RankingState
        try:
            state = await rank(submitted, identifier)
        except asyncio.CancelledError:
            self._states[identifier] = PendingRanking(id=identifier, status="cancelled")
            raise
        except Exception as error:
            # the failure is the caller's answer: it waits in the state
            document, _ = problems.problem_of(error)
            log.warning("pending_ranking_failed", ranking=identifier, error=repr(error))
            reason = ItemError(code=document.type.rpartition(":")[2], message=document.detail or document.title)
            state = PendingRanking(id=identifier, status="failed", error=reason)
        self._states[identifier] = state
        if callback_url is not None:
            delivery = asyncio.create_task(self._deliver_callback(callback_url, state))
            self._deliveries.add(delivery)
            delivery.add_done_callback(self._deliveries.discard)
