"""Groups on their way to one model: they wait in a bounded queue, and those that wait together share a forward.

Forwards never run on the event loop, never more at a time than the reward allows (`Reward.threads`, one for a model
on a device), and never pile up: past `max_groups` waiting groups, or `max_bytes` of their pixels, the caller is told to
come back. Groups are merged, in the order they came, where the reward overrides `score_groups`, up to `batch_images`.
A group that comes to an idle model waits `wait_s` for others, from its arrival on and only while fewer than half a
batch's images wait: a group of 16 to 24 is already a batch. What a group is answered is what it alone would be: a
merged forward that fails is repeated group by group, so that a bad one fails alone.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property

import structlog

from dipole import tracing
from dipole.errors import Overloaded
from dipole_rewards.reward import CandidateImages, Reward, Scores, check_scores
from dipole_rewards.scoring.latent_decoding import LatentDecoder, decode_group, with_void_candidates
from dipole_rewards.scoring.weight_residence import WeightResidence

log = structlog.get_logger()
ScoreGroups = Callable[[Sequence[CandidateImages]], Sequence[Scores]]
ObserveForward = Callable[[float, Sequence[CandidateImages]], None]


@dataclass(frozen=True)
class QueueBounds:
    """What may wait, and how much of it becomes one forward."""

    max_groups: int
    max_bytes: int
    batch_images: int
    wait_s: float


@dataclass(frozen=True)
class QueuedGroup:
    """One group on its way to the model."""

    group: CandidateImages
    answer: Future[Scores] = field(default_factory=Future)
    queued_at: float = field(default_factory=time.monotonic)
    queued_ns: int = field(default_factory=time.time_ns)
    trace: Mapping[str, str] = field(default_factory=tracing.current_headers)  # of the request that asks for it

    def record_spans(self, began_ns: int, works: Sequence[QueuedGroup]) -> None:
        """How long it waited, and the forward that it shared with the others of `works`."""
        parent, images = self.trace.get(tracing.TRACEPARENT), sum(len(work.group.images) for work in works)
        tracing.record_span("queue", self.queued_ns, began_ns, parent=parent)
        tracing.record_span("forward", began_ns, time.time_ns(), parent=parent, groups=len(works), images=images)

    @cached_property
    def nbytes(self) -> int:
        return sum(image.nbytes for image in self.group.images)


class Batcher:
    """Owns the reward's threads. `observe(seconds, groups)` is called after every forward, before its answers.
    `decoder` makes images of groups that come as latents; their decoding is part of the forward.
    """

    def __init__(
        self,
        reward: Reward,
        bounds: QueueBounds,
        *,
        observe: ObserveForward,
        weights: WeightResidence,
        decoder: LatentDecoder | None = None,
    ) -> None:
        self._reward, self._bounds, self._observe = reward, bounds, observe
        self._weights, self._decoder = weights, decoder
        self._can_merge = type(reward).score_groups is not Reward.score_groups
        self._queue: deque[QueuedGroup] = deque()
        self._changed = threading.Condition()  # guards the queue, `_closing` and `_seconds_per_group`
        self._closing = False
        self._seconds_per_group = 1.0  # moving average, for Retry-After
        for number in range(reward.threads):
            threading.Thread(target=self._run_forwards, name=f"reward-{reward.name}-{number}", daemon=True).start()

    @property
    def queue_length(self) -> int:
        return len(self._queue)

    def submit_group(self, group: CandidateImages) -> Future[Scores]:
        """Queue a group; its future may be cancelled while it waits. Raises Overloaded when the queue is full."""
        work = QueuedGroup(group)
        with self._changed:
            self._drop_cancelled()
            nbytes = sum(waiting.nbytes for waiting in self._queue)
            if self._closing:
                raise Overloaded("the service is stopping", retry_after=10)
            if self.queue_length >= self._bounds.max_groups or (
                nbytes and nbytes + work.nbytes > self._bounds.max_bytes
            ):
                half = self.queue_length * self._seconds_per_group / self._reward.threads / 2
                message = f"{self.queue_length} groups are waiting already; send fewer at once"
                raise Overloaded(message, retry_after=max(1.0, half))
            self._queue.append(work)
            self._changed.notify_all()
        return work.answer

    def close(self) -> None:
        """Cancel what waits and let the running forward end."""
        with self._changed:
            self._closing = True
            waiting = list(self._queue)
            self._queue.clear()
            self._changed.notify_all()
        # outside the lock: whoever waits for an answer is called back here
        for work in waiting:
            work.answer.cancel()

    # ---- a reward's thread ------------------------------------------------------------------------------------------

    def _run_forwards(self) -> None:
        while self._forward_next():
            pass

    def _forward_next(self) -> bool:
        """Answer the groups of one forward; False when closing. Returning frees their images before the next wait."""
        works, began_ns = self._take_batch(), time.time_ns()
        for work, answer in zip(works, self._score_batch([work.group for work in works]), strict=True):
            work.record_spans(began_ns, works)
            if isinstance(answer, BaseException):
                work.answer.set_exception(answer)
            else:
                work.answer.set_result(answer)
        return bool(works)

    def _take_batch(self) -> list[QueuedGroup]:
        """The groups of the next forward, as soon as there are some that need not wait; none when closing."""
        with self._changed:
            while not self._closing:
                patience = self._seconds_to_wait()
                if patience != 0:
                    self._changed.wait(patience)
                elif works := self._next_batch():
                    return works
            return []

    def _seconds_to_wait(self) -> float | None:
        """Seconds that the queue may still wait for others; None while it is empty."""
        if not self._queue:
            return None
        images = sum(len(work.group.images) for work in self._queue)
        if not self._can_merge or 2 * images >= self._bounds.batch_images:
            return 0
        return max(0, self._queue[0].queued_at + self._bounds.wait_s - time.monotonic())

    def _next_batch(self) -> list[QueuedGroup]:
        """The first group, and those behind it that fit into a forward with it."""
        works = [self._queue.popleft()]
        room = self._bounds.batch_images - len(works[0].group.images) if self._can_merge else 0
        while self._queue and len(self._queue[0].group.images) <= room:
            works.append(self._queue.popleft())
            room -= len(works[-1].group.images)
        return [work for work in works if work.answer.set_running_or_notify_cancel()]

    def _drop_cancelled(self) -> None:
        """Remove groups whose future was cancelled: they do not count against the bounds, and are never scored."""
        if any(work.answer.cancelled() for work in self._queue):
            self._queue = deque(work for work in self._queue if not work.answer.cancelled())

    def _score_batch(self, groups: Sequence[CandidateImages]) -> Sequence[Scores | BaseException]:
        """One outcome a group, the same as alone: its scores, or the exception that its caller gets."""
        if len(groups) > 1:
            answers = self._measure_forward(groups, self._score_merged)
            if not isinstance(answers, BaseException):
                return answers
            # the device has no room for the weights, for none of them
            if isinstance(answers, Overloaded):
                return [answers] * len(groups)
            log.warning("merged_forward_failed", reward=self._reward.name, groups=len(groups), error=repr(answers))
            # its traceback holds the batch's tensors
            del answers
        return [self._score_alone(group) for group in groups]

    def _score_merged(self, groups: Sequence[CandidateImages]) -> Sequence[Scores]:
        opened, flaws = zip(*(decode_group(self._decoder, group) for group in groups), strict=True)
        asked = [group for group in opened if group.images]
        answers = iter(self._reward.score_groups(asked) if asked else ())
        found = []
        for group, each in zip(opened, flaws, strict=True):
            scores = next(answers) if group.images else Scores([])
            check_scores(scores, len(group.images))
            found.append(with_void_candidates(scores, each))
        return found

    def _score_alone(self, group: CandidateImages) -> Scores | BaseException:
        def score(_: Sequence[CandidateImages]) -> list[Scores]:
            opened, flaws = decode_group(self._decoder, group)
            found = self._reward.score_group(opened) if opened.images else Scores([])
            return [with_void_candidates(found, flaws)]

        answers = self._measure_forward([group], score)
        return answers if isinstance(answers, BaseException) else answers[0]

    def _measure_forward(
        self, groups: Sequence[CandidateImages], call: ScoreGroups
    ) -> Sequence[Scores] | BaseException:
        """`call(groups)`, measured; whatever a plug-in raises is its groups' failure, never the thread's end."""
        began = time.monotonic()
        try:
            with self._weights.hold_awake():
                return call(groups)
        except BaseException as error:
            return error
        finally:
            seconds = time.monotonic() - began
            with self._changed:
                self._seconds_per_group += 0.2 * (seconds / len(groups) - self._seconds_per_group)
            self._observe(seconds, groups)
