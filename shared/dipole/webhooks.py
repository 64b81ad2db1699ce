"""Webhooks: the signed POST that tells somebody that something is done, as Standard Webhooks has it
(https://www.standardwebhooks.com).

A receiver verifies `webhook-signature` over id, time and body, and knows a repeat by its `webhook-id`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import httpx
from standardwebhooks.webhooks import Webhook

from dipole.client.environment import environment_options

TIMEOUT_S = 10.0  # of a connection, a write, a read
ATTEMPT_S = 30.0  # a receiver that answers in drops holds nobody longer
CLAIM_S = 60.0  # whoever attempts keeps others from it for so long, and is heard no more when killed
RETRY_PAUSES_S = (5.0, 30.0, 120.0, 600.0, 3600.0, 6 * 3600.0, 17 * 3600.0)  # after the first attempt, the second, …


def pause_after(attempts: int) -> float | None:
    """Seconds until the next attempt, after so many that failed; None when it is to be given up."""
    return RETRY_PAUSES_S[attempts - 1] if attempts <= len(RETRY_PAUSES_S) else None


async def post_webhook(
    url: str,
    body: str,
    message_id: str,
    *,
    secrets: Sequence[str],
    transport: httpx.AsyncBaseTransport | None = None,
) -> None:
    """One attempt, signed with each of `secrets`. Redirects are not followed, and the answer's body is not read.

    Raises httpx.HTTPError, also for an answer that is no success, or ConfigurationError for a proxy that cannot be.
    """
    now = datetime.now(UTC)
    headers = {
        "content-type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(Webhook(secret).sign(message_id, now, body) for secret in secrets),
    }
    options: dict[str, Any] = environment_options(url) if transport is None else {"transport": transport}
    async with (
        httpx.AsyncClient(**options, timeout=TIMEOUT_S, follow_redirects=False) as client,
        client.stream("POST", url, content=body, headers=headers) as response,
    ):
        if not response.is_success:
            raise httpx.HTTPStatusError(
                f"it answered {response.status_code}", request=response.request, response=response
            )
