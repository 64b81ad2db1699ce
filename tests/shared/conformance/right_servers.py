"""Servers that are right and not like ours: they only rank, answer later or never, use other words, or are small."""

from __future__ import annotations

from dataclasses import replace

from .bent_server import (
    CACHE,
    Answer,
    Asked,
    Forward,
    each,
    info,
    refusals,
    reply,
    without,
)
from .faults import never_finishes, only_ranks

__all__ = ["always_later", "busy", "in_other_words", "needs_metadata", "only_ranks", "people", "small"]

OWN_SHAPE = refusals(lambda _, answer: reply({"error": answer.json["detail"]}, answer.status))


async def needs_metadata(asked: Asked, forward: Forward) -> Answer:
    """Scores nothing without metadata, and says so: as GenEval does."""
    sent = asked.json or (b'"metadata": {' in asked.body and {"metadata": True})
    if asked.ranks and not (isinstance(sent, dict) and sent.get("metadata")):
        error = {"code": "missing_metadata", "message": "needs metadata.include"}
        return await each(lambda _: {"score": None, "rank": None, "error": error})(asked, forward)
    return await forward(asked)


async def always_later(asked: Asked, forward: Forward) -> Answer:
    """Answers every ranking with 202, soon."""
    if asked.ranks:
        asked = replace(asked, headers={**asked.headers, "prefer": "respond-async"})
    answer = await forward(asked)
    if answer.status == 202:
        answer = replace(answer, headers={**answer.headers, "retry-after": "0"})
    return answer


async def busy(asked: Asked, forward: Forward) -> Answer:
    """Takes every other request to rank, and tells the rest when to come back."""
    CACHE["asked"] = CACHE.get("asked", 0) + asked.ranks
    if asked.ranks and CACHE["asked"] % 2 and asked.headers.get("content-type") == "application/json":
        return reply({"title": "Busy", "status": 429}, 429, "application/problem+json", **{"retry-after": "0"})
    return await forward(asked)


async def people(asked: Asked, forward: Forward) -> Answer:
    """Answers every ranking with 202, and not today."""
    name = asked.path.removeprefix("/v1/rankings/")
    if asked.method == "DELETE" and name.startswith("rank_") and "authorization" in asked.headers:
        CACHE[name] = reply({"id": name, "status": "cancelled"})
    if name in CACHE and "authorization" in asked.headers:
        return CACHE[name]
    return await never_finishes(asked, lambda one: always_later(one, forward))


async def in_other_words(asked: Asked, forward: Forward) -> Answer:
    """Problems that name fields in `errors` alone, and as a JSON pointer."""
    answer = await forward(asked)
    if not asked.ranks or not 400 <= answer.status < 500 or answer.status == 401:
        return answer
    listed = answer.json.get("errors") or []
    pointers = [{**error, "field": error["field"].replace("[", ".").replace("]", "")} for error in listed]
    doubled = "unique" in answer.json["detail"]
    told = [{"field": "candidates.2.id", "message": "seen before"}] if doubled else pointers
    return reply({**answer.json, "detail": "not accepted", "errors": told}, answer.status, "application/problem+json")


async def small(asked: Asked, forward: Forward) -> Answer:
    """What a server of twenty lines leaves out: good manners, and nothing else."""
    if asked.path == "/v1/info":
        return await info(multipart=False)(asked, forward)
    if asked.path == "/metrics" or asked.path.startswith("/v1/rankings/"):
        return reply(b"Not Found", 404, "text/plain")
    plain = without("prefer", "idempotency-key")(asked)
    return await OWN_SHAPE(replace(plain, body=plain.body.replace(b', "surprise": 1', b"")), forward)
