"""Checks of many requests at once, of answers that come later, and of what is left after all of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from dipole.conformance import inputs
from dipole.conformance.assertions import same_scores
from dipole.conformance.checks import must, should
from dipole.conformance.failures import Failed, Skipped
from dipole.conformance.reply import Reply
from dipole.conformance.target import ASYNC, BUSY, Target
from dipole.protocol.schemas import PendingRanking, Ranking

CONCURRENCY = 8
HEALTH_S = 2.0  # as long as the probe of an orchestrator waits

T = TypeVar("T")


def at_once(ask: Callable[[dict[str, Any]], T], requests: Iterable[dict[str, Any]]) -> list[T]:
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        return list(pool.map(ask, requests))


def different() -> list[dict[str, Any]]:
    """Requests with images and ids of their own."""
    return [
        inputs.request([inputs.swatch(3 * index + place) for place in range(3)], ids=f"r{index}-")
        for index in range(CONCURRENCY)
    ]


def ranked(target: Target, request: dict[str, Any]) -> Ranking | None:
    """The ranking, or None where the endpoint says politely that it is busy for longer than one waits."""
    reply = target.post(request)
    if reply.status not in BUSY:
        return target.ranking(request, reply)
    if "retry-after" not in reply.headers:
        raise Failed(f"answered {reply.status} without Retry-After: {reply.start()}")
    return None


@must
def concurrent(target: Target) -> None:
    """Requests at the same time each get their own ids back, or 429 or 503 with Retry-After

    Keep nothing of a request in globals; put requests into a queue when the model takes one at a time.
    """
    at_once(lambda request: ranked(target, request), different())


@should
def same_scores_under_load(target: Target) -> None:
    """Scores under load are those given when asked alone

    Scores that differ belong to another request, or batches round too much: compute in float32, or batch alike.
    """
    requests = different()
    alone = [target.rank(request) for request in requests[:3]]
    for before, now in zip(alone, at_once(lambda request: ranked(target, request), requests)[:3], strict=True):
        if now is not None:
            same_scores(before, now, "asked alone, then with others")


@must
def healthy_under_load(target: Target) -> None:
    """/livez answers within two seconds while requests are ranked

    Score in a thread or a process of its own, not on the event loop that answers: a probe that waits kills the pod.
    """
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        working = [pool.submit(ranked, target, request) for request in different()]
        while not all(one.done() for one in working):
            asked = time.monotonic()
            status = target.ask("GET", "livez").status
            seconds = time.monotonic() - asked
            if status != 200 or seconds > HEALTH_S:
                raise Failed(f"/livez answered {status} after {seconds:.1f} s while {CONCURRENCY} requests were ranked")
            time.sleep(0.05)
        for one in working:
            one.result()


# ---- answers that come later


def pending(target: Target, request: dict[str, Any]) -> tuple[PendingRanking, Reply]:
    """What answers 202 when asked to. Raises Skipped where everything is answered at once."""
    reply = target.post(request, headers=ASYNC)
    if reply.status == 200:
        raise Skipped("answers at once, also to Prefer: respond-async")
    if reply.status != 202:
        raise Failed(f"answered {reply.status} to Prefer: respond-async, not 200 or 202: {reply.start()}")
    target.location(reply)
    return reply.parsed(PendingRanking), reply


@must
def pending_finishes(target: Target) -> None:
    """A 202 names its Location on this endpoint, and polling it ends in the ranking of the same id

    Answer Location: /v1/rankings/ID; GET it is 202 until the ranking is there, then 200 with the ranking.
    """
    request = inputs.request()
    promised, reply = pending(target, request)
    try:
        ranking = target.ranking(request, reply)
    except Skipped as late:
        if target.post(request).status == 202:
            raise  # it always answers later: people, batch judges
        raise Failed(f"{late}, though it answers plain requests at once") from None
    if ranking.id != promised.id:
        raise Failed(f"the ranking's id is {ranking.id}, the 202 said {promised.id}")
    if (again := target.ask("GET", target.location(reply))).status != 200:
        raise Failed(f"once read, the ranking is gone: GET answered {again.status}")


@should
def pending_says_when(target: Target) -> None:
    """A 202 carries Retry-After

    Say in how many seconds it is worth looking; without it a trainer looks every second.
    """
    _, reply = pending(target, inputs.request())
    target.forget(target.location(reply))
    if "retry-after" not in reply.headers:
        raise Failed("202 without Retry-After")


@should
def pending_can_be_cancelled(target: Target) -> None:
    """DELETE cancels a pending ranking and GET then says so, or it says 409 when it has finished

    Answer DELETE with 200 and status cancelled, and do not let the ranking finish afterwards.
    """
    replies = at_once(lambda request: pending(target, request)[1], different())  # the last ones still wait, if any do
    wheres = [target.location(reply) for reply in replies]
    answers = [(where, target.ask("DELETE", where)) for where in reversed(wheres)]
    for where, answer in answers:
        if answer.status == 409:
            finished = target.ask("GET", where)
            if finished.status != 200:
                raise Failed(f"DELETE said 409, finished, and GET answered {finished.status}")
            finished.parsed(Ranking)
            continue
        if answer.status != 200 or answer.parsed(PendingRanking).status != "cancelled":
            raise Failed(f"DELETE answered {answer.status}, not 200 with status cancelled: {answer.start()}")
        after = target.ask("GET", where)
        if after.status != 200 or after.parsed(PendingRanking).status != "cancelled":
            raise Failed(f"GET after DELETE answered {after.status}, not the cancelled ranking: {after.start()}")


@must
def still_alive(target: Target) -> None:
    """After all of this it still ranks

    Look into the endpoint's log: one of the requests above broke it.
    """
    if (status := target.ask("GET", "livez").status) != 200:
        raise Failed(f"/livez answers {status}")
    target.rank(inputs.request())
