"""The checks of the conformance suite, in the order they run. Each docstring's first line is the fact it proves."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np

from dipole import images
from dipole.conformance import (
    MAX_EXTRA_CANDIDATES,
    Failed,
    Skipped,
    Target,
    check_problem,
    check_refusal,
    check_results,
    concurrently,
    described,
    fresh_key,
    multipart,
    oversized_png,
    pending_of,
    swatch,
)
from dipole.schemas import PROTOCOL_VERSION, PendingRanking

CHECKS: list[Callable[[Target], None]] = []


def check(function: Callable[[Target], None]) -> Callable[[Target], None]:
    CHECKS.append(function)
    return function


def _with_image(target: Target, image: dict[str, Any]) -> dict[str, Any]:
    """A request whose second candidate carries `image`."""
    request = target.request()
    request["candidates"][1]["image"] = image
    return request


def _raw(data: bytes, media_type: str = "image/png") -> dict[str, Any]:
    return {"media_type": media_type, "data": base64.b64encode(data).decode()}


# ---- what it says of itself


@check
def alive(target: Target) -> None:
    """/livez and /readyz answer 200, /metrics answers Prometheus text"""
    for path in ("livez", "readyz", "metrics"):
        reply = target.ask("GET", path)
        if reply.status != 200:
            raise Failed(f"/{path} answered {reply.status}")
    if not reply.headers.get("content-type", "").startswith(("text/plain", "application/openmetrics-text")):
        raise Failed(f"/metrics answered {reply.headers.get('content-type')}")


@check
def info(target: Target) -> None:
    """/v1/info is a valid RewardInfo of this protocol version and accepts PNG"""
    if target.info.protocol_version != PROTOCOL_VERSION:
        raise Failed(f"protocol_version is {target.info.protocol_version!r}, not {PROTOCOL_VERSION!r}")
    if "image/png" not in target.info.media_types:
        raise Failed("media_types lacks image/png, which every endpoint accepts")


@check
def key_needed(target: Target) -> None:
    """Without the key the answer is 401"""
    if not target.key:
        raise Skipped("no --key given")
    reply = target.ask("POST", "v1/rank", json=target.request(), authorised=False)
    check_problem(reply, "a request without the key", 401)


# ---- what it answers


@check
def ranks_json(target: Target) -> None:
    """A JSON request gets a valid Ranking: every id once and in order, ranks that agree with scores"""
    target.rank(target.request())


@check
def ranks_every_media_type(target: Target) -> None:
    """Every media type of /v1/info is accepted"""
    for kind in target.info.media_types:
        target.rank(_with_image(target, described(swatch(), kind)))


@check
def ranks_multipart(target: Target) -> None:
    """A multipart request with binary parts gets a valid Ranking"""
    if not target.info.multipart:
        raise Skipped("/v1/info says multipart: false")
    request, arguments = multipart(target)
    target.rank(request, **arguments)


@check
def ranks_one(target: Target) -> None:
    """A single candidate is ranked, metadata and non-Latin prompts are accepted"""
    target.rank(target.request(1, prompt="один красный квадрат 🟥", metadata={"tag": "single_object", "include": []}))


@check
def ties_share_a_rank(target: Target) -> None:
    """Among equal images, equal scores share a rank and the next rank is skipped"""
    target.rank(target.request([swatch(1), swatch(1), swatch(2), swatch(1)]))


@check
def names_its_revision(target: Target) -> None:
    """Every answer carries the model, model_revision and recipe_version of /v1/info"""
    ranking, known = target.rank(target.request()), target.info
    for name in ("model", "model_revision", "recipe_version"):
        if not getattr(ranking, name) or getattr(ranking, name) != getattr(known, name):
            raise Failed(f"{name} is {getattr(ranking, name)!r}, /v1/info says {getattr(known, name)!r}")


@check
def idempotent(target: Target) -> None:
    """The same Idempotency-Key and body get the first answer; another body gets 409 or 422"""
    key, request = fresh_key(), target.request()
    first, second = (target.ask("POST", "v1/rank", json=request, headers=key) for _ in range(2))
    ids = [
        reply.parsed(PendingRanking).id if reply.status == 202 else target.finished(reply).id
        for reply in (first, second)
    ]
    if ids[0] != ids[1]:
        raise Failed(f"the repeat is another ranking: {ids[0]} and {ids[1]}")
    other = target.ask("POST", "v1/rank", json=target.request(prompt="another prompt"), headers=key)
    check_problem(other, "a used key with another body", 409, 422)


@check
def concurrent(target: Target) -> None:
    """Requests at the same time each get their own ids back, or 429/503 with Retry-After"""
    concurrently(target)


# ---- what it refuses


@check
def refuses_wrong_fields(target: Target) -> None:
    """Unknown, missing and doubled fields are refused by name"""
    request = target.request()
    target.refuses("an unknown field", names="surprise", json={**request, "surprise": 1})
    target.refuses("no candidates", names="candidates", json={**request, "candidates": []})
    target.refuses("no prompt", names="prompt", json={"candidates": request["candidates"]})
    target.refuses("an id twice", names="id", json={**request, "candidates": request["candidates"][:1] * 2})


@check
def refuses_what_is_not_json(target: Target) -> None:
    """A body that is not JSON, or of another content type, is refused"""
    target.refuses("broken JSON", content=b'{"prompt": ', headers={"content-type": "application/json"})
    target.refuses("a list", json=[1, 2])
    target.refuses("an XML body", content=b"<rank/>", headers={"content-type": "application/xml"})


@check
def refuses_bad_base64(target: Target) -> None:
    """Image data that is not base64 is refused and named"""
    wrong = _with_image(target, {"media_type": "image/png", "data": "no base64 at all!"})
    target.refuses("wrong base64", names="candidates[1].image", json=wrong)


@check
def refuses_urls(target: Target) -> None:
    """A URL in place of image data is refused, never fetched"""
    for image in ({"media_type": "image/png", "data": "http://127.0.0.1:9/a.png"}, {"url": "http://127.0.0.1:9/a.png"}):
        target.refuses("an image URL", names="candidates[1].image", json=_with_image(target, image))


@check
def refuses_unknown_media_type(target: Target) -> None:
    """A media type that is not listed is refused and named"""
    wrong = _with_image(target, _raw(b"GIF89a", "image/gif"))
    target.refuses("image/gif", names="candidates[1].image", json=wrong)


@check
def survives_corrupt_images(target: Target) -> None:
    """A corrupt image is refused by name, or gets a null score with a reason; never a score"""
    png = images.encode_png(swatch(size=64))
    for what, data in (("noise", b"\x00\x01nothing" * 9), ("half a PNG", png[: len(png) // 2])):
        request = _with_image(target, _raw(data))
        reply = target.ask("POST", "v1/rank", json=request)
        if reply.status in (200, 202):
            ranking = target.finished(reply)
            check_results(ranking, [candidate["id"] for candidate in request["candidates"]])
            if ranking.results[1].score is not None:
                raise Failed(f"{what} got the score {ranking.results[1].score}")
        else:
            check_refusal(reply, what, names="candidates[1]")


@check
def refuses_huge_images(target: Target) -> None:
    """A PNG that promises more pixels than max_pixels is refused before it is decoded"""
    side = int(target.info.max_pixels**0.5) + 1000
    target.refuses(
        "an oversized PNG", names="candidates[1].image", json=_with_image(target, _raw(oversized_png(side, side)))
    )


@check
def refuses_pickles(target: Target) -> None:
    """An npy file with pickled objects, of another type or of a false length is refused"""
    if images.NPY not in target.info.media_types:
        raise Skipped(f"{images.NPY} is not accepted")
    pickled = io.BytesIO()
    np.save(pickled, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    floats = io.BytesIO()
    np.save(floats, np.zeros((4, 4, 3), np.float32))
    good = images.encode_npy(swatch())
    for what, data in (("a pickle", pickled.getvalue()), ("floats", floats.getvalue()), ("a short file", good[:-1])):
        target.refuses(what, names="candidates[1].image", json=_with_image(target, _raw(data, images.NPY)))


@check
def refuses_too_many(target: Target) -> None:
    """More candidates than max_candidates are refused"""
    if target.info.max_candidates >= MAX_EXTRA_CANDIDATES:
        raise Skipped(f"max_candidates is {target.info.max_candidates}: too many to try")
    image = described(swatch(size=8))
    many = [{"id": f"id-{index}", "image": image} for index in range(target.info.max_candidates + 1)]
    target.refuses("too many candidates", names="candidates", json={"prompt": "", "candidates": many})


@check
def problems_everywhere(target: Target) -> None:
    """Unknown paths, wrong methods and unknown rankings are problem+json as well"""
    check_problem(target.ask("GET", "v1/no-such-thing"), "an unknown path", 404)
    check_problem(target.ask("GET", "v1/rank"), "GET /v1/rank", 405)
    check_problem(target.ask("GET", "v1/rankings/no-such-ranking"), "an unknown ranking", 404)


# ---- slow answers


@check
def pending_finishes(target: Target) -> None:
    """A 202 names its Location on this endpoint, and polling it ends in the ranking of the same id"""
    request = target.request()
    reply = target.ask("POST", "v1/rank", json=request, headers={"Prefer": "respond-async"})
    pending = pending_of(reply)
    if "retry-after" not in reply.headers:
        raise Failed("202 without Retry-After")
    ranking = target.finished(reply)
    check_results(ranking, [candidate["id"] for candidate in request["candidates"]])
    if ranking.id != pending.id:
        raise Failed(f"the ranking's id is {ranking.id}, the 202 said {pending.id}")


@check
def pending_can_be_cancelled(target: Target) -> None:
    """DELETE cancels a pending ranking, or says 409 when it has finished"""
    reply = target.ask("POST", "v1/rank", json=target.request(), headers={"Prefer": "respond-async"})
    pending_of(reply)
    where = target.location(reply)
    cancelled = target.ask("DELETE", where)
    if cancelled.status == 409:
        check_problem(cancelled, "DELETE of a finished ranking", 409)
        return
    if cancelled.status != 200 or cancelled.parsed(PendingRanking).status != "cancelled":
        raise Failed(f"DELETE answered {cancelled.status}, not 200 with status cancelled")
    after = target.ask("GET", where)
    if after.status != 200 or after.parsed(PendingRanking).status != "cancelled":
        raise Failed(f"GET after DELETE answered {after.status}, not the cancelled ranking")


@check
def still_alive(target: Target) -> None:
    """After all of this it still ranks"""
    if (status := target.ask("GET", "livez").status) != 200:
        raise Failed(f"/livez answers {status}")
    target.rank(target.request())
