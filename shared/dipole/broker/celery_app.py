"""The Celery app of both sides: its broker is the Redis that `connect_redis` connects to."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from celery import Celery

from dipole.broker.connection import check_redis_address
from dipole.redis_url import RedisAddress

# a message nobody acknowledged comes back after this; tasks are shorter, or no-ops when repeated
VISIBILITY_TIMEOUT_S = 60


class BrokerApp(Celery):  # type: ignore[misc]
    """A Celery app of one broker and no results, whatever CELERY_… variables say to others on this machine."""

    backend_cls = "disabled"

    def __init__(self, address: RedisAddress) -> None:
        super().__init__("dipole", broker=_kombu_url(address), set_as_current=False)
        self._url = _kombu_url(address)

    def connection_for_read(self, url: str | None = None, **kwargs: Any) -> Any:
        return super().connection_for_read(url or self._url, **kwargs)

    def connection_for_write(self, url: str | None = None, **kwargs: Any) -> Any:
        return super().connection_for_write(url or self._url, **kwargs)


def create_celery_app(redis_url: str) -> Celery:
    """The app of both sides. JSON only; acknowledged after the work; no result backend, answers are pushed."""
    address = check_redis_address(redis_url)
    app = BrokerApp(address)
    app.conf.update(
        broker_use_ssl=None if address.tls is None else dict(address.tls),
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=True,
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            "visibility_timeout": VISIBILITY_TIMEOUT_S,
            "socket_timeout": 30,
            "socket_connect_timeout": 5,
            "max_retries": 0,  # of a connection to send by: whoever sends knows when to try again, and has other work
        },
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_enable_remote_control=False,  # nothing is steered by broadcast, so nothing may be
        worker_send_task_events=False,
        enable_utc=True,
    )
    return app


def _kombu_url(address: RedisAddress) -> str:
    """The address as kombu spells it; TLS is told beside it."""
    user = quote(address.username or "", safe="")
    password = f":{quote(address.password, safe='')}" if address.password else ""
    credentials = f"{user}{password}@" if user or password else ""
    if address.socket is not None:
        return f"redis+socket://{credentials}{quote(address.socket)}?virtual_host={address.db}"
    return f"redis://{credentials}{address.netloc}/{address.db}"
