"""`Idempotency-Key`: a repeated request gets the first one's answer, also while the first is still being worked on.

Answers live in memory, the oldest go first. A failed request leaves nothing behind, so its retry is a fresh attempt;
nor does a 202 whose ranking failed, was cancelled or is no longer kept.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from dipole.errors import InvalidInput
from dipole.protocol.schemas import Ranking
from dipole_rewards.server.ranking_backend import RankingState

IDEMPOTENCY_HEADER = "Idempotency-Key"
MAX_KEY_CHARS = 255


def check_key(key: str) -> str:
    """The key. Raises InvalidInput for one that is empty, too long or not printable."""
    if not 0 < len(key) <= MAX_KEY_CHARS or not key.isprintable():
        raise InvalidInput(
            f"{IDEMPOTENCY_HEADER} must be 1 to {MAX_KEY_CHARS} printable characters", field=IDEMPOTENCY_HEADER
        )
    return key


def refuse_reused_key(key: str) -> InvalidInput:
    """The error for a key that came with another body before."""
    return InvalidInput(
        f"{IDEMPOTENCY_HEADER} {key!r} was used with another body; use a new key", field=IDEMPOTENCY_HEADER
    )


class IdempotencyStore:
    """`is_lost` says whether a pending ranking will never give a result."""

    def __init__(self, entries: int, is_lost: Callable[[str], bool]) -> None:
        self._limit, self._is_lost = entries, is_lost
        self._answers: OrderedDict[str, tuple[str, asyncio.Task[RankingState]]] = OrderedDict()

    async def run_once(self, key: str | None, digest: str, make: Callable[[], Awaitable[RankingState]]) -> RankingState:
        """`make()`'s answer, or the one kept under `key`. Raises InvalidInput when the key came with another body."""
        if key is None:
            return await make()
        check_key(key)
        if key in self._answers and self._is_reusable(self._answers[key][1]):
            known, task = self._answers[key]
            if known != digest:
                raise refuse_reused_key(key)
            self._answers.move_to_end(key)
            return await asyncio.shield(task)
        task = asyncio.create_task(_await_response(make))
        self._answers[key] = (digest, task)
        self._answers.move_to_end(key)
        task.add_done_callback(lambda done: self._forget_failure(key, done))
        while len(self._answers) > self._limit:
            self._answers.popitem(last=False)
        return await asyncio.shield(task)

    def _is_reusable(self, task: asyncio.Task[RankingState]) -> bool:
        """Whether the answer may be repeated: it is still being made, or its ranking is still kept."""
        if not task.done():
            return True
        if task.cancelled() or task.exception() is not None:
            return False
        state = task.result()
        return isinstance(state, Ranking) or not self._is_lost(state.id)

    def _forget_failure(self, key: str, task: asyncio.Task[RankingState]) -> None:
        failed = task.cancelled() or task.exception() is not None
        if failed and key in self._answers and self._answers[key][1] is task:
            del self._answers[key]


async def _await_response(make: Callable[[], Awaitable[RankingState]]) -> RankingState:
    return await make()
