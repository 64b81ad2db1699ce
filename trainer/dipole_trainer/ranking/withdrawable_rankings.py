"""What a job has pending at rewards that take their time, kept in Redis while it is.

A paused job leaves it pending, for raters go on; whoever cancels the job later, holding no run of it, has it withdrawn
from here, so that nobody works for nothing. Redis may lose it: the endpoint's own deadline ends it then.
"""

from __future__ import annotations

import json
import uuid
from typing import Any, cast

import redis
from celery import Celery

from dipole.broker.messages import RankMessage
from dipole.broker.rankings import RANK_TASK, TaskCoordination, queue_name

WITHDRAW_TTL_S = 60  # how long rank workers may take to tell endpoints that nobody waits
KEPT_S = 30 * 24 * 3600


class WithdrawableRankings:
    """Of all jobs. Methods raise RedisError, and kombu's OperationalError, where Redis is away."""

    def __init__(self, app: Celery, client: redis.Redis) -> None:
        self._app, self._redis = app, client
        self._coordination = TaskCoordination(client, WITHDRAW_TTL_S)

    def keep(self, job_id: str, message: RankMessage, endpoint: dict[str, Any]) -> None:
        """A ranking that is pending at `message["location"]`; `endpoint` is as in a run's record."""
        key = f"dipole:pending:{job_id}"
        pipe = self._redis.pipeline(transaction=False)
        pipe.hset(key, message["key"], json.dumps({"message": message, "endpoint": endpoint}))
        pipe.expire(key, KEPT_S)
        pipe.execute()

    def forget(self, job_id: str, key: str) -> None:
        """Of a ranking that came, or is withdrawn."""
        self._redis.hdel(f"dipole:pending:{job_id}", key)

    def withdraw(self, job_id: str) -> None:
        """Have the endpoints told that nobody waits for what the job has pending. Once, and unheard."""
        key = f"dipole:pending:{job_id}"
        kept = [json.loads(value) for value in cast("dict[bytes, bytes]", self._redis.hgetall(key)).values()]
        if not kept:
            return
        run = uuid.uuid4().hex  # a record of its own, which outlives the job's
        rewards = {each["message"]["reward"]: each["endpoint"] for each in kept}
        self._coordination.open_run(run, {"rewards": rewards})
        deadline = self._coordination.server_time() + WITHDRAW_TTL_S
        for each in kept:
            message = {**each["message"], "run": run, "deadline": deadline, "withdraw": True}
            task = f"{message['key'][:32]}.withdraw"
            headers = {"request_id": message["key"][:32], "job_id": job_id}
            queue = queue_name(message["reward"])
            self._app.send_task(RANK_TASK, kwargs=message, queue=queue, task_id=task, headers=headers, retry=False)
        self._redis.delete(key)

    def close(self) -> None:
        self._app.close()
