"""SamplerClient: how the API has images drawn and jobs planned, without torch and without blocking its event loop.

A request goes to whichever sampler is free; its answer is waited for in short looks, each in a thread of a small pool
of their own. Every way out has an end: no sampler, too many requests, a sampler that was killed, Redis restarted, the
deadline, a caller who hung up. All but the last are a 503 that says what to do and when to come back.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, TypeVar, cast

import structlog
from anyio import CapacityLimiter, to_thread
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from dipole import tracing
from dipole.broker.celery_app import create_celery_app
from dipole.broker.connection import connect_redis, describe_redis_error
from dipole.broker.image_requests import IMAGE_QUEUE, IMAGE_TASK, PLAN_TASK, ImageRequestStore, image_coordination
from dipole.broker.messages import CheckpointRef, ImageAnswer, ImageRequest, PlanAnswer, PlanRequest
from dipole.errors import DipoleError, InvalidInput, Overloaded
from dipole.settings import ApiSettings

log = structlog.get_logger()
T = TypeVar("T")

POLL_INTERVAL_S = 1.0  # longest blocking read for an answer; shorter than a claim's TTL
RETRY_AFTER_S = 10.0  # Retry-After, where nothing better is known
START_HINT = "start one with `dipole serve sampler`"


class SamplerFailed(DipoleError):
    """The sampler failed unexpectedly. The reason is in its log only."""

    def __init__(self) -> None:
        super().__init__("the sampler failed; its log has the reason under this answer's X-Request-ID")


class ImageRequestLost(Overloaded):
    """The request was lost on its way, through nobody's fault: send it again."""

    def __init__(self, why: str) -> None:
        super().__init__(f"{why}: send the request again", retry_after=1)


class DrawnImages(NamedTuple):
    """PNG files, and what was not done as asked."""

    images: list[bytes]
    warning: str | None


class PlannedJob(NamedTuple):
    """A plan for each device, as `dipole plan --json` prints it, and what the numbers do not say."""

    plans: list[dict[str, Any]]
    remarks: list[str]


IsDisconnected = Callable[[], Awaitable[bool]]


class SamplerClient:
    """One per API process. Its methods may be awaited by many requests at once."""

    def __init__(self, settings: ApiSettings) -> None:
        self._settings = settings
        self._redis = connect_redis(settings.redis_url)
        self._app = create_celery_app(settings.redis_url)
        self._coordination, self._image_requests = image_coordination(self._redis), ImageRequestStore(self._redis)
        # more requests than this are not open at once
        self._threads = CapacityLimiter(settings.sampler_queue + 1)

    def close(self) -> None:
        self._app.close()
        self._redis.close()

    async def draw_images(
        self,
        model: Mapping[str, Any],
        checkpoint: CheckpointRef | None,
        prompt: str,
        seeds: list[int],
        is_disconnected: IsDisconnected,
    ) -> DrawnImages:
        """A PNG file a seed. Raises InvalidInput, Overloaded or SamplerFailed as the sampler said, or Overloaded."""
        request: ImageRequest = {
            "order": uuid.uuid4().hex,
            "model": dict(model),
            "checkpoint": checkpoint,
            "prompt": prompt,
            "seeds": seeds,
            "deadline": 0.0,
        }
        images: list[str] = []
        began = time.monotonic()
        try:
            await self._run_in_pool(lambda: self._send_request(IMAGE_TASK, request))
            deadline = began + self._settings.sampler_timeout_s
            answer = cast(ImageAnswer, await self._await_answer(request["order"], deadline, is_disconnected))
            images = _image_references(answer)
            return DrawnImages(await self._run_in_pool(lambda: self._fetch_images(images)), answer.get("warning"))
        finally:
            await self._run_in_pool(lambda: self._discard_request(request["order"], images))

    async def plan_job(
        self,
        job: Mapping[str, Any],
        devices: list[str],
        chunk_size: int | None,
        is_disconnected: IsDisconnected,
    ) -> PlannedJob:
        """What a job with these fields takes on each device. Raises as `draw_images`."""
        request: PlanRequest = {
            "order": uuid.uuid4().hex,
            "job": dict(job),
            "devices": devices,
            "chunk_size": chunk_size,
            "deadline": 0.0,
        }
        began = time.monotonic()
        try:
            await self._run_in_pool(lambda: self._send_request(PLAN_TASK, request))
            deadline = began + self._settings.sampler_timeout_s
            answer = cast(PlanAnswer, await self._await_answer(request["order"], deadline, is_disconnected))
            if answer["status"] == "planned":
                return PlannedJob(answer["plans"], answer["remarks"])
            raise _refusal_of(answer)
        finally:
            await self._run_in_pool(lambda: self._discard_request(request["order"], []))

    # What is done in a thread

    def _send_request(self, task: str, request: ImageRequest | PlanRequest) -> None:
        """Raises Overloaded when no sampler runs, or the queue is full."""
        limit, now = self._settings.sampler_queue, self._coordination.server_time()
        if not self._image_requests.count_samplers(now=now):
            raise Overloaded(f"no sampler runs: {START_HINT}", retry_after=RETRY_AFTER_S)
        request["deadline"] = now + self._settings.sampler_timeout_s
        if not self._image_requests.open(request["order"], now=now, deadline=request["deadline"], limit=limit):
            wait = f"{limit} requests for samplers wait already (DIPOLE_SAMPLER_QUEUE): "
            wait += f"come back later, or {START_HINT} more"
            raise Overloaded(wait, retry_after=RETRY_AFTER_S)
        request_id = structlog.contextvars.get_contextvars().get("request_id", "")
        self._app.send_task(
            task,
            kwargs=request,
            queue=IMAGE_QUEUE,
            task_id=request["order"],
            headers={"request_id": request_id, **tracing.current_headers()},
            retry=False,
        )

    def _poll_answer(self, request_id: str, wait_s: float) -> tuple[ImageAnswer | PlanAnswer | None, bool, bool]:
        """(the answer, whether it is open, whether a sampler works on it), after a wait for the first."""
        answers = self._coordination.pop_answers(request_id, wait_s)
        if answers:
            return cast("ImageAnswer | PlanAnswer", answers[0]), True, True
        return None, self._image_requests.is_open(request_id), bool(self._coordination.claimed_keys([request_id]))

    def _fetch_images(self, images: list[str]) -> list[bytes]:
        found = [image for image in self._image_requests.get_images(images) if image is not None]
        if len(found) < len(images):
            raise ImageRequestLost("Redis has dropped the images")
        return found

    def _discard_request(self, request_id: str, images: list[str]) -> None:
        try:
            self._image_requests.close(request_id, images)
        except RedisError as error:
            # what is left there expires
            log.warning("redis_failed", error=describe_redis_error(error))

    # Waiting

    async def _await_answer(
        self, request_id: str, deadline: float, is_disconnected: IsDisconnected
    ) -> ImageAnswer | PlanAnswer:
        claimed = False
        while (left := deadline - time.monotonic()) > 0:
            wait_s = min(POLL_INTERVAL_S, left)
            answer, is_open, is_claimed = await self._run_in_pool(lambda: self._poll_answer(request_id, wait_s))  # noqa: B023 (awaited here)
            # A claim expires when a sampler dies, but also right after it pushed its answer: poll once more.
            if answer is None and claimed and not is_claimed:
                answer, _, _ = await self._run_in_pool(lambda: self._poll_answer(request_id, 0))
                if answer is None:
                    raise ImageRequestLost("the sampler that worked on this ended")
            if answer is not None:
                return answer
            if not is_open:
                raise ImageRequestLost("Redis has dropped the request")
            if await is_disconnected():
                raise Overloaded("the caller hung up", retry_after=RETRY_AFTER_S)
            claimed = is_claimed
        limit = f"within {self._settings.sampler_timeout_s:g} s (DIPOLE_SAMPLER_TIMEOUT_S)"
        if claimed:
            raise Overloaded(
                f"a sampler took this and was not done {limit}: ask for less, or later", retry_after=RETRY_AFTER_S
            )
        raise Overloaded(
            f"every sampler was busy, none took this {limit}: {START_HINT} more", retry_after=RETRY_AFTER_S
        )

    async def _run_in_pool(self, call: Callable[[], T]) -> T:
        try:
            return await to_thread.run_sync(call, limiter=self._threads)
        except (RedisError, OperationalError) as error:
            said = describe_redis_error(error)
            log.warning("redis_failed", error=said)
            raise Overloaded(f"samplers are asked through Redis. {said}", retry_after=RETRY_AFTER_S) from error


def _image_references(answer: ImageAnswer) -> list[str]:
    """References of the images of an answer; what else it may say is raised."""
    if answer["status"] == "drawn":
        return list(answer["images"])
    raise _refusal_of(answer)


def _refusal_of(answer: ImageAnswer | PlanAnswer) -> DipoleError:
    match answer["status"]:
        case "refused":
            return InvalidInput(answer["message"], field=answer["field"])
        case "busy":
            return Overloaded(answer["message"], retry_after=answer["retry_after"])
    return SamplerFailed()
