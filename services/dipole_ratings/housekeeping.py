"""What the service does by itself: close tasks that are due, send callbacks, weigh raters, drop what is old.

Every replica does all of it; row locks keep them from doing it twice. While the database is away it waits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import httpx
import structlog
from sqlalchemy.exc import SQLAlchemyError

from dipole.database.failures import describe_database_error
from dipole.errors import ConfigurationError, DipoleError
from dipole.web import background
from dipole.webhooks import ATTEMPT_S
from dipole_ratings.api.dependencies import RatingParts
from dipole_ratings.queue.deliveries import DueDelivery
from dipole_ratings.queue.retention import drop_old_tasks
from dipole_rewards.server.callbacks import post_callback

log = structlog.get_logger()

ROUND_S = 1.0
WEIGHTS_EVERY_S, RETENTION_EVERY_S = 60.0, 600.0


class Housekeeper:
    def __init__(self, parts: RatingParts, *, callback_transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.parts, self._transport = parts, callback_transport
        secret = parts.settings.ratings_callback_secret
        self._secret = secret.get_secret_value() if secret else None
        self._due: dict[Callable[[], object], float] = {}

    async def run_forever(self) -> None:
        while True:
            try:
                await self.run_round()
            except (SQLAlchemyError, DipoleError) as error:
                said = describe_database_error(error) if isinstance(error, SQLAlchemyError) else str(error)
                log.warning("housekeeping_waits", error=said)
            except Exception:
                # a round that fails must not be the last: tasks would never be delivered again
                log.exception("housekeeping_failed")
            await asyncio.sleep(ROUND_S)

    async def run_round(self) -> None:
        """Once all that is due now."""
        await background.finish_in_thread(self.parts.tasks.close_due_tasks)
        if self._secret is not None:
            due = await background.finish_in_thread(self.parts.outbox.take_due)
            await asyncio.gather(*(self._deliver(each, self._secret) for each in due))
        await self._run_every(WEIGHTS_EVERY_S, self.parts.judge.refresh_weights)
        await self._run_every(RETENTION_EVERY_S, self._drop_old_tasks)

    async def _deliver(self, due: DueDelivery, secret: str) -> None:
        error: str | None = None
        try:
            # a receiver that answers in drops holds nobody longer than its claim
            async with asyncio.timeout(ATTEMPT_S):
                await post_callback(due.url, due.state, secret=secret, transport=self._transport)
        except (httpx.HTTPError, ConfigurationError, TimeoutError) as problem:
            error = str(problem) or type(problem).__name__
            log.warning("callback_failed", delivery=due.id, error=error)
        await background.finish_in_thread(self.parts.outbox.record_attempt, due.id, error)

    async def _run_every(self, seconds: float, work: Callable[[], object]) -> None:
        if self._due.get(work, 0.0) <= time.monotonic():
            await background.finish_in_thread(work)
            self._due[work] = time.monotonic() + seconds

    def _drop_old_tasks(self) -> None:
        while drop_old_tasks(self.parts.context):
            pass
