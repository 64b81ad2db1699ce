"""Faults that take more than a change of the answer: what servers do wrong between a request and its ranking."""

from __future__ import annotations

import asyncio
import base64
import json
import time
import urllib.request
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from dipole.conformance import inputs
from dipole.protocol import images
from dipole.protocol.latents import LATENTS

from .bent_server import (
    CACHE,
    MAX_PIXELS,
    Answer,
    Asked,
    Forward,
    changed,
    each,
    info,
    reply,
    results,
)


async def only_ranks(asked: Asked, forward: Forward) -> Answer:
    """Right: people and judges of pairs give an order without scores, which /v1/info says."""
    if asked.path == "/v1/info":
        return await info(calibrated=False)(asked, forward)
    return await each(lambda _: {"score": None})(asked, forward)


async def needs_progress(asked: Asked, forward: Forward) -> Answer:
    """Wants to be told the training's progress, and ranks for nobody who does not train."""
    if asked.path == "/v1/info":
        return await info(wants=["progress"])(asked, forward)
    if asked.ranks and b'"progress"' not in asked.body:
        return reply({"detail": "progress is missing"}, 422)
    return await forward(asked)


async def parts_by_place(asked: Asked, forward: Forward) -> Answer:
    """Takes a multipart request's parts in the order they come in, whatever they are called."""
    if "multipart" not in asked.headers.get("content-type", ""):
        return await forward(asked)
    last_first = asked.body.find(b'name="id-2"') < asked.body.find(b'name="id-0"')
    return await results(lambda found: _scores_turned(found) if last_first else found)(asked, forward)


def _scores_turned(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results with the scores and ranks of the last for the first."""
    return [
        {**one, "score": other["score"], "rank": other["rank"]} for one, other in zip(found, found[::-1], strict=True)
    ]


def mended(asked: Asked, is_bad: Callable[[str], bool]) -> Asked:
    """The request with a good image wherever the data is bad."""
    if not asked.ranks or not asked.candidates():
        return asked
    good = inputs.image_part(inputs.make_swatch())
    listed = [{**one, "image": good} if is_bad(str(one["image"].get("data"))) else one for one in asked.candidates()]
    return replace(asked, body=json.dumps({**asked.json, "candidates": listed}).encode())


def is_corrupt(data: str) -> bool:
    try:
        images.decode_image(base64.b64decode(data, validate=True), "image/png")
    except ValueError:
        return True
    return False


def is_large(data: str) -> bool:
    try:
        images.measure_image(base64.b64decode(data), "image/png", max_pixels=MAX_PIXELS)
    except images.TooLarge:
        return True
    except ValueError:
        return False
    return False


async def guards_health(asked: Asked, forward: Forward) -> Answer:
    """Wants the key of a probe that has none."""
    if asked.path in ("/livez", "/readyz") and "authorization" not in asked.headers:
        return reply({}, 401)
    return await forward(asked)


async def ranks_from_two(asked: Asked, forward: Forward) -> Answer:
    """An order without scores that has no best."""
    return await each(lambda one: {"rank": one["rank"] + 1})(asked, lambda one: only_ranks(one, forward))


async def leaves_one_out(asked: Asked, forward: Forward) -> Answer:
    """An order without scores, and a candidate of which nothing is said."""
    bend = results(lambda found: [*found[:-1], {**found[-1], "rank": None}])
    return await bend(asked, lambda one: only_ranks(one, forward))


async def zero_for_corrupt(asked: Asked, forward: Forward) -> Answer:
    """Scores what it cannot decode: 0, and the last rank."""
    answer = await forward(mended(asked, is_corrupt))
    if answer.status != 200 or not asked.ranks or not asked.candidates():
        return answer
    bad = [is_corrupt(str(one["image"].get("data"))) for one in asked.candidates()]
    scores = [0.0 if broken else one["score"] for one, broken in zip(answer.json["results"], bad, strict=True)]
    return changed(answer, results=scored(answer.json["results"], scores))


def scored(found: list[Any], scores: list[float]) -> list[Any]:
    """The results with other scores, and the ranks that belong to them."""
    ranks = [1 + sum(other > score for other in scores) for score in scores]
    return [{**one, "score": score, "rank": rank} for one, score, rank in zip(found, scores, ranks, strict=True)]


async def fetches(asked: Asked, forward: Forward) -> Answer:
    """Looks at a URL before it refuses it."""
    for one in asked.candidates():
        url = str(one["image"].get("data") or one["image"].get("url"))
        if url.startswith("http"):
            with suppress(OSError):
                await asyncio.to_thread(urllib.request.urlopen, url, timeout=2)
    return await forward(asked)


async def calls_back_unsigned(asked: Asked, forward: Forward) -> Answer:
    url = asked.json.get("callback_url") if asked.ranks and isinstance(asked.json, dict) else None
    if not url:
        return await forward(asked)
    with suppress(OSError):
        await asyncio.to_thread(urllib.request.urlopen, url, b"{}", 2)
    return await forward(replace(asked, body=json.dumps({**asked.json, "callback_url": None}).encode()))


async def blocks(asked: Asked, forward: Forward) -> Answer:
    """Scores on the event loop."""
    if asked.ranks:
        time.sleep(0.4)  # the fault
    return await forward(asked)


async def mixes_requests(asked: Asked, forward: Forward) -> Answer:
    """Keeps the request in a global until the model has time."""
    if asked.ranks:
        CACHE["request"] = asked
        await asyncio.sleep(0.05)
        asked = CACHE["request"]
    return await forward(asked)


async def mixes_scores(asked: Asked, forward: Forward) -> Answer:
    """The same with scores: right ids, the images of somebody else."""
    if not asked.ranks or len(asked.candidates()) != 3:
        return await forward(asked)
    CACHE["images"] = [one["image"] for one in asked.candidates()]
    await asyncio.sleep(0.05)
    listed = [{**one, "image": image} for one, image in zip(asked.candidates(), CACHE["images"], strict=True)]
    return await forward(replace(asked, body=json.dumps({**asked.json, "candidates": listed}).encode()))


async def random_scores(asked: Asked, forward: Forward) -> Answer:
    """Another order every time."""
    answer = await forward(asked)
    if not asked.ranks or answer.status != 200:
        return answer
    drawn = [float(uuid.uuid4().int % 10_000) for _ in answer.json["results"]]
    return changed(answer, results=scored(answer.json["results"], drawn))


def first_is_best(found: list[Any]) -> list[Any]:
    """A judge that prefers what it saw first."""
    return scored(found, [-float(index) for index in range(len(found))])


async def never_finishes(asked: Asked, forward: Forward) -> Answer:
    answer = await forward(asked)
    if not asked.path.startswith("/v1/rankings/") or answer.status != 200 or asked.method != "GET":
        return answer
    return reply({"id": answer.json["id"], "status": "pending"}, 202)


async def ignores_cancel(asked: Asked, forward: Forward) -> Answer:
    if asked.method == "DELETE" and "rank_" in asked.path and "authorization" in asked.headers:
        return reply({"id": asked.path.rpartition("/")[2], "status": "cancelled"})
    return await forward(asked)


async def gone_once_read(asked: Asked, forward: Forward) -> Answer:
    answer = await forward(asked)
    if asked.path.startswith("/v1/rankings/") and answer.status == 200:
        if asked.path in CACHE:
            return reply({}, 404)
        CACHE[asked.path] = True
    return answer


def lax(asked: Asked, answer: Answer) -> Answer:
    """Scores whatever it gets: refusals become rankings full of zeros."""
    listed = [{"id": one["id"], "score": 0.0, "rank": 1} for one in asked.candidates()]
    return reply(ranking(listed)) if asked.ranks and listed else answer


def ranking(listed: list[dict[str, Any]]) -> dict[str, Any]:
    known = {"model": "Colourfulness", "model_revision": "1", "recipe_version": "1"}
    return {"id": f"rank_{uuid.uuid4().hex}", "created": 1, **known, "results": listed}


async def lost_in_upload(asked: Asked, forward: Forward) -> Answer:
    """Reads only the JSON of a multipart body."""
    if asked.headers.get("content-type", "").startswith("multipart/"):
        return reply({"detail": "send JSON"}, 415)
    return await forward(asked)


def dies(asked: Asked) -> Asked:
    """After a pickle nothing is ranked any more."""
    CACHE["dead"] = CACHE.get("dead") or b"gif" in asked.body
    return replace(asked, path="/gone", body=b"") if CACHE["dead"] and asked.ranks else asked


def quoting(asked: Asked, answer: Answer) -> Answer:
    """A refusal that quotes what it got."""
    return reply({**answer.json, "input": asked.body.decode("latin-1")}, answer.status, "application/problem+json")


def anonymous(_: Asked, answer: Answer) -> Answer:
    return reply({"title": "Bad", "status": answer.status}, answer.status, "application/problem+json")


def holds_latents(asked: Asked) -> bool:
    return any(one["image"].get("media_type") == LATENTS for one in asked.candidates())


async def lists_latents_alone(asked: Asked, forward: Forward) -> Answer:
    """Says that it takes latents, and reads none."""
    return reply({"detail": "image/png, please"}, 415) if holds_latents(asked) else await forward(asked)


def with_images(asked: Asked) -> Asked:
    """The request with a good image in place of any latents, whatever they hold."""
    if not holds_latents(asked):
        return asked
    good = inputs.image_part(inputs.make_swatch())
    listed = [{**one, "image": good} for one in asked.candidates()]
    return replace(asked, body=json.dumps({**asked.json, "candidates": listed}).encode())
