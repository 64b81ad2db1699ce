"""Callbacks: the signed POST that tells a caller that its 202 ranking is done."""

from __future__ import annotations

import time
from collections.abc import Collection
from datetime import UTC, datetime
from urllib.parse import urlsplit

import httpx
import stamina
import structlog

from dipole import webhooks
from dipole.errors import ConfigurationError, InvalidInput
from dipole.protocol.schemas import Ranking
from dipole_rewards.server.ranking_backend import RankingState

log = structlog.get_logger()

CALLBACK_ATTEMPTS = 5


def check_callback_url(url: str | None, allowed_hosts: Collection[str]) -> None:
    """Raises InvalidInput unless `url` names an allowed host, over http(s) and without user or password."""
    if url is None:
        return
    if not allowed_hosts:
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
    if host not in allowed_hosts:
        raise InvalidInput(f"callback_url: host {host!r} is not on this endpoint's allow-list", field="callback_url")


async def deliver_callback(
    url: str, state: RankingState, *, secret: str, transport: httpx.AsyncBaseTransport | None = None
) -> None:
    """POST a Standard-Webhooks-signed event; retried under one message id, never redirected; then given up."""
    try:
        async for attempt in stamina.retry_context(on=httpx.HTTPError, attempts=CALLBACK_ATTEMPTS, timeout=None):
            with attempt:
                await post_callback(url, state, secret=secret, transport=transport)
    except (httpx.HTTPError, ConfigurationError) as error:
        log.warning("callback_given_up", ranking=state.id, error=repr(error))


async def post_callback(
    url: str, state: RankingState, *, secret: str, transport: httpx.AsyncBaseTransport | None = None
) -> None:
    """One attempt; the message id is the ranking's at every one, so that a receiver knows a repeat.

    Raises httpx.HTTPError, also for an answer that is no success, or ConfigurationError for a proxy that cannot be.
    """
    await webhooks.post_webhook(url, _event_body(state), f"msg_{state.id}", secrets=[secret], transport=transport)


def _event_body(state: RankingState) -> str:
    kind = "completed" if isinstance(state, Ranking) else state.status
    stamp = datetime.fromtimestamp(time.time(), UTC).isoformat()
    data = state.model_dump_json(exclude_none=False)
    return f'{{"type":"ranking.{kind}","timestamp":"{stamp}","data":{data}}}'
