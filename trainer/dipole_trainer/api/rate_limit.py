"""Rate limits by key: counted in Redis, so that all API processes count together; 429 with Retry-After past them.

A key is counted under its hash. While Redis is away nothing is limited: whoever holds a key is trusted more than that.
"""

from __future__ import annotations

import time

import redis
import structlog
from limits import RateLimitItem, parse_many
from limits.storage import RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool

from dipole.broker.connection import describe_redis_error
from dipole.errors import TooManyRequests
from dipole.web import asgi
from dipole_trainer.api.auth import Caller
from dipole_trainer.api.errors import answer_error

log = structlog.get_logger()

AFTER_FAILURE_S = 5.0  # in which Redis is not asked again: no request waits for its timeout but one


class KeyRateLimiter:
    """Counts of `limits`, as `600/minute` or `20/second;36000/hour`, each of which holds."""

    def __init__(self, limits: str, client: redis.Redis) -> None:
        self._limits: list[RateLimitItem] = parse_many(limits)
        storage = RedisStorage("redis://", connection_pool=client.connection_pool, key_prefix="dipole:limits")
        self._counter = SlidingWindowCounterRateLimiter(storage)
        self._failed_at = -AFTER_FAILURE_S

    def count_request(self, caller: Caller) -> None:
        """Raises TooManyRequests when the caller has used a limit up."""
        if time.monotonic() < self._failed_at + AFTER_FAILURE_S:
            return
        try:
            for limit in self._limits:
                if not self._counter.hit(limit, caller.digest):
                    left = self._counter.get_window_stats(limit, caller.digest).reset_time - time.time()
                    raise TooManyRequests(f"this key may ask {limit}: come back later", retry_after=max(left, 1.0))
        except RedisError as error:
            self._failed_at = time.monotonic()
            log.warning("rate_limit_not_counted", error=describe_redis_error(error))


class RateLimitMiddleware:
    """ASGI, within authentication: pages and probes, which need no key, are not counted."""

    def __init__(self, app: asgi.ASGIApp, *, limiter: KeyRateLimiter) -> None:
        self.app, self.limiter = app, limiter

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        caller: Caller | None = scope.get("dipole.caller")
        if caller is not None:
            try:
                await run_in_threadpool(self.limiter.count_request, caller)
            except TooManyRequests as error:
                return await answer_error(None, error)(scope, receive, send)  # type: ignore[no-any-return]
        await self.app(scope, receive, send)
