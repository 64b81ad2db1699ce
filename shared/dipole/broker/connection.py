"""The Celery app of both sides, and connections to Redis."""

from __future__ import annotations

import redis
from celery import Celery
from redis.connection import PythonRespSerializer

# a message nobody acknowledged comes back after this; tasks are shorter, or no-ops when repeated
VISIBILITY_TIMEOUT_S = 60
MIN_UNCOPIED_BYTES = 6000  # a longer value is sent from where it lies
MAX_BLOCKING_READ_S = 5.0  # longest single blocking read, below the socket timeout


def create_celery_app(redis_url: str) -> Celery:
    """The app of both sides. JSON only; acknowledged after the work; no result backend, answers are pushed."""
    app = Celery("dipole", broker=redis_url, set_as_current=False)
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        result_backend=None,
        task_acks_late=True,
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            "visibility_timeout": VISIBILITY_TIMEOUT_S,
            "socket_timeout": 30,
            "socket_connect_timeout": 5,
        },
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_enable_remote_control=False,  # nothing is steered by broadcast, so nothing may be
        worker_send_task_events=False,
        enable_utc=True,
    )
    return app


def connect_redis(redis_url: str) -> redis.Redis:
    """A Redis client whose calls end: five seconds to connect, fifteen for any answer.

    Answers are parsed by hiredis; commands are not packed by it, because it copies a group's megabytes twice.
    """
    client = redis.Redis.from_url(
        redis_url, socket_connect_timeout=5, socket_timeout=MAX_BLOCKING_READ_S + 10, health_check_interval=30
    )
    packer = PythonRespSerializer(MIN_UNCOPIED_BYTES, client.get_encoder().encode)
    client.connection_pool.connection_kwargs["command_packer"] = packer
    return client
