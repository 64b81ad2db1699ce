"""Sends the webhooks that are owed (jobs/webhooks.py), in the background of every API process.

Killed in the midst of one, it leaves a row that another process takes after CLAIM_S; the receiver may then hear twice.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import httpx
import structlog
from sqlalchemy.exc import SQLAlchemyError

from dipole.client.endpoint import check_allowed_url
from dipole.database.failures import describe_database_error
from dipole.errors import ConfigurationError, InvalidInput
from dipole.settings import ApiSettings, split_keys
from dipole.web import background
from dipole.webhooks import ATTEMPT_S, post_webhook
from dipole_trainer.database.engine import Database
from dipole_trainer.jobs.webhooks import DueWebhook, WebhookOutbox

log = structlog.get_logger()

LOOK_INTERVAL_S = 1.0


def check_settings(settings: ApiSettings) -> None:
    """Raises ConfigurationError for hosts without a secret: nobody could tell such a webhook from a forged one."""
    if settings.webhook_hosts and not split_keys(settings.webhook_secret):
        raise ConfigurationError(
            "DIPOLE_WEBHOOK_HOSTS needs DIPOLE_WEBHOOK_SECRET, which webhooks are signed with (docs/webhooks.md)"
        )


@contextlib.asynccontextmanager
async def run_in_background(settings: ApiSettings, database: Database) -> AsyncIterator[None]:
    """While inside; nothing where no secret is set."""
    if not split_keys(settings.webhook_secret):
        yield
        return
    async with background.run_in_background(_run_forever(settings, WebhookOutbox(database))):
        yield


async def _run_forever(settings: ApiSettings, outbox: WebhookOutbox) -> None:
    while True:
        try:
            due = await background.finish_in_thread(outbox.take_due)
            await asyncio.gather(*(_send_webhook(settings, outbox, each) for each in due))
        except SQLAlchemyError as error:
            log.warning("database_unreachable", error=describe_database_error(error))
        except Exception:
            # a round that fails must not be the last
            log.exception("webhooks_failed")
        await asyncio.sleep(LOOK_INTERVAL_S)


async def _send_webhook(settings: ApiSettings, outbox: WebhookOutbox, due: DueWebhook) -> None:
    reason, is_final = None, False
    try:
        # the list may have changed since the job was created
        check_allowed_url(due.url, settings.webhook_hosts, field="the URL", setting="DIPOLE_WEBHOOK_HOSTS")
        async with asyncio.timeout(ATTEMPT_S):
            await post_webhook(due.url, due.body(), due.id, secrets=split_keys(settings.webhook_secret))
    except InvalidInput as error:
        reason, is_final = str(error), True
    except (httpx.HTTPError, ConfigurationError, TimeoutError) as error:
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    log.info("webhook_sent", webhook=due.id, job_id=due.job_id, failure=reason)
    await background.finish_in_thread(outbox.record_attempt, due.id, reason, is_final=is_final)
