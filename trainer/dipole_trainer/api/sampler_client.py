"""Orders: how the API has images drawn, without torch and without blocking its event loop.

An order goes to whichever sampler is free; its answer is waited for in short looks, each in a thread of a small pool of
their own. Every way out has an end: no sampler, too many orders, a sampler that was killed, Redis restarted, the
deadline, a caller who hung up. All but the last are a 503 that says what to do and when to come back.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import structlog
from anyio import CapacityLimiter, to_thread
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from dipole.broker.connection import celery_app, connect
from dipole.broker.image_requests import IMAGE_QUEUE, IMAGE_TASK, ImageBoard, Order, Place, board_of
from dipole.errors import DipoleError, InvalidInput, Overloaded
from dipole.settings import ApiSettings

log = structlog.get_logger()
T = TypeVar("T")

LOOK_S = 1.0  # one look for an answer, well within a claim's life
AGAIN_S = 10.0  # Retry-After, where nothing better is known
SERVE = "start one with `dipole serve sampler`"


class SamplerFailed(DipoleError):
    """The sampler met what nobody thought of. Its log has the reason, this answer has not."""

    def __init__(self) -> None:
        super().__init__("the sampler failed; its log has the reason under this answer's X-Request-ID")


class Lost(Overloaded):
    """The order was lost on its way, through nobody's fault: send it again."""

    def __init__(self, why: str) -> None:
        super().__init__(f"{why}: send the request again", retry_after=1)


class Orders:
    """One per API process. `draw` may be awaited by many requests at once."""

    def __init__(self, settings: ApiSettings) -> None:
        self._settings = settings
        self._redis = connect(settings.redis_url)
        self._app = celery_app(settings.redis_url)
        self._board, self._images = board_of(self._redis), ImageBoard(self._redis)
        self._threads = CapacityLimiter(settings.sampler_queue + 1)  # more orders than this are not open at once

    def close(self) -> None:
        self._app.close()
        self._redis.close()

    async def draw(
        self,
        model: Mapping[str, Any],
        place: Place | None,
        prompt: str,
        seeds: list[int],
        hung_up: Callable[[], Awaitable[bool]],
    ) -> list[bytes]:
        """A PNG file a seed. Raises InvalidInput, Overloaded or SamplerFailed as the sampler said, or Overloaded."""
        order: Order = {
            "order": uuid.uuid4().hex,
            "model": dict(model),
            "checkpoint": place,
            "prompt": prompt,
            "seeds": seeds,
            "deadline": 0.0,
        }
        images: list[str] = []
        began = time.monotonic()
        try:
            await self._call(lambda: self._send(order))
            answer = await self._wait(order["order"], began + self._settings.sampler_timeout_s, hung_up)
            images = _drawn(answer)
            return await self._call(lambda: self._fetch(images))
        finally:
            await self._call(lambda: self._forget(order["order"], images))

    # What is done in a thread

    def _send(self, order: Order) -> None:
        """Raises Overloaded when nobody would draw it soon."""
        limit, now = self._settings.sampler_queue, self._board.now()
        if not self._images.samplers(now=now):
            raise Overloaded(f"no sampler runs: {SERVE}", retry_after=AGAIN_S)
        order["deadline"] = now + self._settings.sampler_timeout_s
        if not self._images.open(order["order"], now=now, deadline=order["deadline"], limit=limit):
            wait = f"{limit} requests for images wait already (DIPOLE_SAMPLER_QUEUE): come back later, or {SERVE} more"
            raise Overloaded(wait, retry_after=AGAIN_S)
        request_id = structlog.contextvars.get_contextvars().get("request_id", "")
        self._app.send_task(
            IMAGE_TASK,
            kwargs=order,
            queue=IMAGE_QUEUE,
            task_id=order["order"],
            headers={"request_id": request_id},
            retry=False,
        )

    def _look(self, order: str, wait_s: float) -> tuple[dict[str, Any] | None, bool, bool]:
        """(the answer, whether it is open, whether a sampler works on it), after a wait for the first."""
        answers = self._board.answers(order, wait_s)
        if answers:
            return answers[0], True, True
        return None, self._images.is_open(order), bool(self._board.claimed([order]))

    def _fetch(self, images: list[str]) -> list[bytes]:
        found = [image for image in self._images.get(images) if image is not None]
        if len(found) < len(images):
            raise Lost("Redis has dropped the images")
        return found

    def _forget(self, order: str, images: list[str]) -> None:
        try:
            self._images.close(order, images)
        except RedisError as error:  # what is left there expires
            log.warning("redis_unreachable", error=str(error))

    # Waiting

    async def _wait(self, order: str, deadline: float, hung_up: Callable[[], Awaitable[bool]]) -> dict[str, Any]:
        claimed = False
        while (left := deadline - time.monotonic()) > 0:
            wait_s = min(LOOK_S, left)
            answer, is_open, is_claimed = await self._call(lambda: self._look(order, wait_s))  # noqa: B023 (awaited here)
            if answer is None and claimed and not is_claimed:  # pushed just now, or never
                answer, _, _ = await self._call(lambda: self._look(order, 0))
                if answer is None:
                    raise Lost("the sampler that drew this ended")
            if answer is not None:
                return answer
            if not is_open:
                raise Lost("Redis has dropped the request")
            if await hung_up():
                raise Overloaded("the caller hung up", retry_after=AGAIN_S)
            claimed = is_claimed
        limit = f"within {self._settings.sampler_timeout_s:g} s (DIPOLE_SAMPLER_TIMEOUT_S)"
        if claimed:
            raise Overloaded(f"the images were not done {limit}: ask for fewer or smaller ones", retry_after=AGAIN_S)
        raise Overloaded(f"every sampler was busy, none took this {limit}: {SERVE} more", retry_after=AGAIN_S)

    async def _call(self, call: Callable[[], T]) -> T:
        try:
            return await to_thread.run_sync(call, limiter=self._threads)
        except (RedisError, OperationalError) as error:
            log.warning("redis_unreachable", error=str(error))
            raise Overloaded("Redis does not answer, through which samplers are asked", retry_after=AGAIN_S) from error


def _drawn(answer: Mapping[str, Any]) -> list[str]:
    """References of the images of an answer; what else it may say is raised."""
    match answer["status"]:
        case "drawn":
            return list(answer["images"])
        case "refused":
            raise InvalidInput(answer["message"], field=answer["field"])
        case "busy":
            raise Overloaded(answer["message"], retry_after=answer["retry_after"])
    raise SamplerFailed
