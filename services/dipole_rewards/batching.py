"""One thread for one model: groups wait in a bounded queue and are scored whole, in the order they came.

Forwards therefore never run on the event loop, never two at a time on one device, and never pile up: past `depth`
waiting groups, or `max_bytes` of their pixels, the caller is told to come back. A group of 16 to 24 images is already a
batch, so groups are not held back to be merged.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from pydantic import JsonValue

from dipole.errors import Overloaded
from dipole_rewards.reward import Pixels, Reward, Scores


@dataclass(frozen=True)
class Work:
    """One group on its way to the model."""

    prompt: str
    images: Sequence[Pixels]
    metadata: Mapping[str, JsonValue] | None
    answer: Future[Scores] = field(default_factory=Future)

    @property
    def nbytes(self) -> int:
        return sum(image.nbytes for image in self.images)


class Batcher:
    """Owns the reward's thread. `observe(seconds, images)` is told of every forward."""

    def __init__(self, reward: Reward, *, depth: int, max_bytes: int, observe: Callable[[float, int], None]) -> None:
        self._reward, self._observe = reward, observe
        self._queue: queue.Queue[Work | None] = queue.Queue(maxsize=depth)
        self._max_bytes, self._bytes, self._lock = max_bytes, 0, threading.Lock()
        self._closing = threading.Event()
        self._seconds_per_group = 1.0  # moving average, to tell an honest Retry-After
        self._thread = threading.Thread(target=self._run, name=f"reward-{reward.name}", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return self._queue.qsize()

    def submit(self, prompt: str, images: Sequence[Pixels], metadata: Mapping[str, JsonValue] | None) -> Future[Scores]:
        """Queue a group; its future may be cancelled while it waits. Raises Overloaded when the queue is full."""
        work = Work(prompt, images, metadata)
        with self._lock:
            if self._queue.full() or (self._bytes and self._bytes + work.nbytes > self._max_bytes):
                wait = max(1.0, self.waiting * self._seconds_per_group / 2)
                raise Overloaded(f"{self.waiting} groups are waiting already; send fewer at once", retry_after=wait)
            self._bytes += work.nbytes
            self._queue.put_nowait(work)
        return work.answer

    def close(self) -> None:
        """Cancel what waits and let the running group end."""
        self._closing.set()
        with contextlib.suppress(queue.Empty):
            while True:
                work = self._queue.get_nowait()
                if work is not None:
                    work.answer.cancel()
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)

    def _run(self) -> None:
        while not self._closing.is_set():
            work = self._queue.get()
            if work is None:
                continue
            with self._lock:
                self._bytes -= work.nbytes
            if not work.answer.set_running_or_notify_cancel():
                continue
            began = time.monotonic()
            scores: Scores | BaseException
            try:
                scores = self._reward.score(prompt=work.prompt, images=work.images, metadata=work.metadata)
            except BaseException as error:  # whatever a plug-in raises is one group's failure, never the thread's end
                scores = error
            seconds = time.monotonic() - began
            self._seconds_per_group += 0.2 * (seconds - self._seconds_per_group)
            self._observe(seconds, len(work.images))  # first: whoever has the answer finds it in the metrics
            if isinstance(scores, BaseException):
                work.answer.set_exception(scores)
            else:
                work.answer.set_result(scores)
