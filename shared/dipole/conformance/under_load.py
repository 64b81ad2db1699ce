"""Checks of many requests at once, of answers that come later, and of what is left after all of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from dipole.conformance import inputs
from dipole.conformance.assertions import check_same_scores
from dipole.conformance.checks import must, should
from dipole.conformance.failures import CheckFailed, CheckSkipped
from dipole.conformance.reply import EndpointReply
from dipole.conformance.target import ASYNC_HEADERS, BUSY_STATUSES, Target
from dipole.protocol.schemas import PendingRanking, Ranking

CONCURRENCY = 8
HEALTH_TIMEOUT_S = 2.0  # as long as the probe of an orchestrator waits

T = TypeVar("T")


def send_at_once(ask: Callable[[dict[str, Any]], T], requests: Iterable[dict[str, Any]]) -> list[T]:
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        return list(pool.map(ask, requests))


def distinct_requests() -> list[dict[str, Any]]:
    """Requests with images and ids of their own."""
    return [
        inputs.rank_request([inputs.make_swatch(3 * index + place) for place in range(3)], ids=f"r{index}-")
        for index in range(CONCURRENCY)
    ]


def ranking_unless_busy(target: Target, request: dict[str, Any]) -> Ranking | None:
    """The ranking, or None where the endpoint says politely that it is busy for longer than one waits."""
    reply = target.post_rank(request, timeout_s=CONCURRENCY * target.timeout_s)  # one may wait for all others
    if reply.status not in BUSY_STATUSES:
        return target.parse_ranking(request, reply)
    if "retry-after" not in reply.headers:
        raise CheckFailed(f"answered {reply.status} without Retry-After: {reply.excerpt()}")
    return None


@must
def concurrent(target: Target) -> None:
    """Requests at the same time each get their own ids back, or 429 or 503 with Retry-After

    Keep nothing of a request in globals; put requests into a queue when the model takes one at a time.
    """
    send_at_once(lambda request: ranking_unless_busy(target, request), distinct_requests())


@should
def same_scores_under_load(target: Target) -> None:
    """Scores under load are those given when asked alone

    Scores that differ belong to another request, or batches round too much: compute in float32, or batch alike.
    """
    requests = distinct_requests()
    alone = [target.rank(request) for request in requests[:3]]
    for before, now in zip(
        alone, send_at_once(lambda request: ranking_unless_busy(target, request), requests)[:3], strict=True
    ):
        if now is not None:
            check_same_scores(before, now, "asked alone, then with others")


@must
def healthy_under_load(target: Target) -> None:
    """/livez answers within two seconds while requests are ranked

    Score in a thread or a process of its own, not on the event loop that answers: a probe that waits kills the pod.
    """
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        working = [pool.submit(ranking_unless_busy, target, request) for request in distinct_requests()]
        while not all(one.done() for one in working):
            asked = time.monotonic()
            status = target.send("GET", "livez").status
            seconds = time.monotonic() - asked
            if status != 200 or seconds > HEALTH_TIMEOUT_S:
                raise CheckFailed(
                    f"/livez answered {status} after {seconds:.1f} s while {CONCURRENCY} requests were ranked"
                )
            time.sleep(0.05)
        for one in working:
            one.result()


# ---- answers that come later


def request_pending(target: Target, request: dict[str, Any]) -> tuple[PendingRanking, EndpointReply]:
    """What answers 202 when asked to. Raises CheckSkipped where everything is answered at once."""
    reply = target.post_rank(request, headers=ASYNC_HEADERS)
    if reply.status == 200:
        raise CheckSkipped("answers at once, also to Prefer: respond-async")
    if reply.status != 202:
        raise CheckFailed(f"answered {reply.status} to Prefer: respond-async, not 200 or 202: {reply.excerpt()}")
    target.location_of(reply)
    return reply.parse(PendingRanking), reply


@must
def pending_finishes(target: Target) -> None:
    """A 202 names its Location on this endpoint, and polling it ends in the ranking of the same id

    Answer Location: rankings/ID, relative to /v1/rank; GET it is 202 until the ranking is there, then 200 with the
    ranking.
    """
    request = inputs.rank_request()
    promised, reply = request_pending(target, request)
    try:
        ranking = target.parse_ranking(request, reply)
    except CheckSkipped as late:
        if target.post_rank(request).status == 202:
            # it always answers later: people, batch judges
            raise
        raise CheckFailed(f"{late}, though it answers plain requests at once") from None
    if ranking.id != promised.id:
        raise CheckFailed(f"the ranking's id is {ranking.id}, the 202 said {promised.id}")
    if (again := target.send("GET", target.location_of(reply))).status != 200:
        raise CheckFailed(f"once read, the ranking is gone: GET answered {again.status}")


@should
def pending_says_when(target: Target) -> None:
    """A 202 carries Retry-After

    Say in how many seconds it is worth looking; without it a trainer looks every second.
    """
    _, reply = request_pending(target, inputs.rank_request())
    target.cancel_ranking(target.location_of(reply))
    if "retry-after" not in reply.headers:
        raise CheckFailed("202 without Retry-After")


@should
def pending_can_be_cancelled(target: Target) -> None:
    """DELETE cancels a pending ranking and GET then says so, or it says 409 when it has finished

    Answer DELETE with 200 and status cancelled, and do not let the ranking finish afterwards.
    """
    replies = send_at_once(
        lambda request: request_pending(target, request)[1], distinct_requests()
    )  # the last ones still wait, if any do
    wheres = [target.location_of(reply) for reply in replies]
    answers = [(where, target.send("DELETE", where)) for where in reversed(wheres)]
    for where, answer in answers:
        if answer.status == 409:
            finished = target.send("GET", where)
            if finished.status != 200:
                raise CheckFailed(f"DELETE said 409, finished, and GET answered {finished.status}")
            finished.parse(Ranking)
            continue
        if answer.status != 200 or answer.parse(PendingRanking).status != "cancelled":
            raise CheckFailed(f"DELETE answered {answer.status}, not 200 with status cancelled: {answer.excerpt()}")
        after = target.send("GET", where)
        if after.status != 200 or after.parse(PendingRanking).status != "cancelled":
            raise CheckFailed(f"GET after DELETE answered {after.status}, not the cancelled ranking: {after.excerpt()}")


@must
def still_alive(target: Target) -> None:
    """After all of this it still ranks

    Look into the endpoint's log: one of the requests above broke it.
    """
    if (status := target.send("GET", "livez").status) != 200:
        raise CheckFailed(f"/livez answers {status}")
    target.rank(inputs.rank_request())
