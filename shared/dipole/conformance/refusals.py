"""Checks of what an endpoint refuses: requests that are wrong, too large, or mean harm."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from dipole.conformance import inputs
from dipole.conformance.answers import MAX_TRIED_CANDIDATES
from dipole.conformance.assertions import check_problem, check_refusal, mentions_field
from dipole.conformance.checks import must, should
from dipole.conformance.failures import CheckFailed, CheckSkipped
from dipole.conformance.fetch_trap import FetchTrap
from dipole.conformance.target import Target
from dipole.protocol import images
from dipole.protocol.schemas import MAX_PROMPT_CHARS

HUGE_BODY_BYTES = 2**40
HUGE_BODY_TIMEOUT_S = 5.0
MAX_WHITE_PIXELS = 2**25  # larger images than this are only promised, not sent
SECOND_IMAGE_FIELD = "candidates[1].image"
UNKNOWN_RANKING = "no-such-ranking"


def check_refuses(target: Target, what: str, request: Any, *, names: str | None = None) -> None:
    check_refusal(target.post_rank(request), what, names)


@must
def refuses_wrong_fields(target: Target) -> None:
    """Missing, empty, doubled and mistyped fields are refused with 4xx and named

    Validate against the schema of RankRequest and put the path of the field into the answer, as in
    {"detail": "candidates[1].id: is missing"}.
    """
    request = inputs.rank_request()
    first, second, _ = request["candidates"]
    wrong: dict[str, tuple[dict[str, Any], str]] = {
        "no prompt": ({"candidates": request["candidates"]}, "prompt"),
        "a number for a prompt": ({**request, "prompt": 5}, "prompt"),
        "a prompt that is too long": ({**request, "prompt": "a" * (MAX_PROMPT_CHARS + 1)}, "prompt"),
        "no candidates": ({**request, "candidates": []}, "candidates"),
        "an object for a list": ({**request, "candidates": {}}, "candidates"),
        "an id twice": ({**request, "candidates": [first, second, first]}, "candidates"),
        "a candidate without id": ({**request, "candidates": [first, {"image": first["image"]}]}, "candidates[1].id"),
        "an image without data": (inputs.request_with_image({"media_type": "image/png"}), SECOND_IMAGE_FIELD),
        "null for an image": ({**request, "candidates": [first, {"id": "b", "image": None}]}, SECOND_IMAGE_FIELD),
    }
    for what, (sent, names) in wrong.items():
        check_refuses(target, what, sent, names=names)


@should
def refuses_unknown_fields(target: Target) -> None:
    """An unknown field is refused and named, so that a misspelt one is an error and not a silence

    Allow only the fields of RankRequest (additionalProperties: false).
    """
    check_refuses(target, "an unknown field", inputs.rank_request(surprise=1), names="surprise")


@must
def refuses_what_is_not_json(target: Target) -> None:
    """A body that is not a JSON object, or of another content type, is refused with 4xx

    Catch the parser's error, and look at the value's type and at Content-Type before using it.
    """
    check_refuses(target, "a list", [1, 2])
    check_refuses(target, "null", None)
    bodies = {
        "broken JSON": (b'{"prompt": ', "application/json"),
        "no body": (b"", "application/json"),
        "bytes that are no UTF-8": (b'{"prompt": "\xff\xfe"}', "application/json"),
        "deeply nested JSON": (b"[" * 100_000, "application/json"),
        "an XML body": (b"<rank/>", "application/xml"),
        "an empty multipart body": (b"", "multipart/form-data; boundary=x"),
    }
    for what, (content, kind) in bodies.items():
        check_refusal(target.send("POST", "v1/rank", content=content, headers={"content-type": kind}), what)


@must
def refuses_bad_base64(target: Target) -> None:
    """Image data that is not base64 is refused and named

    Decode strictly, or compare with what encoding gives back; many decoders skip what they do not know.
    """
    png = inputs.image_part(inputs.make_swatch())["data"]
    for what, data in (("wrong base64", "no base64 at all!"), ("base64 with junk in it", png[:40] + "!?" + png[40:])):
        check_refuses(
            target, what, inputs.request_with_image({"media_type": "image/png", "data": data}), names=SECOND_IMAGE_FIELD
        )


@must
def never_fetches(target: Target) -> None:
    """A URL in place of image data is refused and never fetched

    Take bytes only: a server that fetches what it is told to can be sent anywhere in its network.
    """
    with FetchTrap(target.host, target.port) as trap:
        for image in ({"media_type": "image/png", "data": trap.url}, {"url": trap.url}):
            check_refuses(target, "an image URL", inputs.request_with_image(image), names=SECOND_IMAGE_FIELD)
        check_refuses(
            target,
            "a file URL",
            inputs.request_with_image({"media_type": "image/png", "data": "file:///a"}),
            names=SECOND_IMAGE_FIELD,
        )
    if trap.visits:
        raise CheckFailed(f"the URL of an image was fetched: {trap.visits[0][:60]!r}")


@should
def callbacks_are_signed(target: Target) -> None:
    """A callback_url is refused by name, not needed as the answer is there, or called with a signature

    Refuse it unless its host is on an allow-list; sign as Standard Webhooks says: webhook-id, -timestamp, -signature.
    """
    with FetchTrap(target.host, target.port) as trap:
        reply = target.post_rank(inputs.rank_request(callback_url=trap.url))
        if 400 <= reply.status < 500:
            return check_refusal(reply, "a callback_url", names="callback_url")
        target.poll_ranking(reply)
    if reply.status == 202 and not trap.visits:
        raise CheckFailed("a callback_url was taken and not called")
    if trap.visits and b"webhook-signature:" not in trap.visits[0].lower():
        raise CheckFailed(f"called back without webhook-signature: {trap.visits[0][:60]!r}")


@must
def refuses_unknown_media_type(target: Target) -> None:
    """A media type that /v1/info does not list is refused and named

    Compare with the list before decoding; do not guess from the bytes.
    """
    check_refuses(
        target,
        "image/gif",
        inputs.request_with_image(inputs.raw_image(b"GIF89a", "image/gif")),
        names=SECOND_IMAGE_FIELD,
    )
    png = inputs.encode_image(inputs.make_swatch())
    check_refuses(
        target,
        "a PNG that calls itself SVG",
        inputs.request_with_image(inputs.raw_image(png, "image/svg+xml")),
        names=SECOND_IMAGE_FIELD,
    )


@must
def makes_up_no_scores(target: Target) -> None:
    """A corrupt image is refused by name, or gets a null score with a reason; never a score

    Let decoding fail on truncated files; answer 422, or null with an error for that candidate. 0 is a score.
    """
    png = inputs.encode_image(inputs.make_noise(64))
    corrupt = {"nothing": b"", "noise": b"\x00\x01nothing" * 9, "half a PNG": png[: len(png) // 2]}
    for what, data in corrupt.items():
        request = inputs.request_with_image(inputs.raw_image(data))
        reply = target.post_rank(request)
        if reply.status not in (200, 202):
            check_refusal(reply, what, names="candidates[1]")
            continue
        found = target.parse_ranking(request, reply).results[1]
        if found.score is not None or found.rank is not None:
            raise CheckFailed(f"{what} got the score {found.score} and the rank {found.rank}")


@must
def refuses_huge_images(target: Target) -> None:
    """A PNG of more pixels than max_pixels is refused by its header, whole or not

    Read width and height and compare with max_pixels before decoding: 100 kB can hold gigabytes of pixels.
    """
    side = int(target.info.max_pixels**0.5)
    promise = inputs.raw_image(inputs.oversized_png(side + 1000, side + 1000))
    check_refuses(target, "a promise of too many pixels", inputs.request_with_image(promise), names=SECOND_IMAGE_FIELD)
    if target.info.max_pixels <= MAX_WHITE_PIXELS:
        white = inputs.raw_image(inputs.white_png(side + 8, side + 8))
        check_refuses(target, "a PNG with too many pixels", inputs.request_with_image(white), names=SECOND_IMAGE_FIELD)


@must
def refuses_pickles(target: Target) -> None:
    """An npy file with pickled objects, of another type or of a false length is refused

    Read the header yourself: uint8, three dimensions, the last 3, C order, exactly its bytes; never unpickle.
    """
    if images.NPY not in target.info.media_types:
        raise CheckSkipped(f"{images.NPY} is not accepted")
    pickled, floats = io.BytesIO(), io.BytesIO()
    np.save(pickled, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save(floats, np.zeros((4, 4, 3), np.float32))
    good = images.encode_npy(inputs.make_swatch())
    for what, data in (("a pickle", pickled.getvalue()), ("floats", floats.getvalue()), ("a short file", good[:-1])):
        check_refuses(
            target, what, inputs.request_with_image(inputs.raw_image(data, images.NPY)), names=SECOND_IMAGE_FIELD
        )


@must
def refuses_too_many(target: Target) -> None:
    """More candidates than max_candidates are refused

    Count before decoding; answer 413 or 422 and name candidates.
    """
    count = target.info.max_candidates + 1
    if count > MAX_TRIED_CANDIDATES:
        raise CheckSkipped(f"max_candidates is {target.info.max_candidates}: too many to try")
    request = inputs.rank_request([inputs.make_swatch(index, size=8) for index in range(count)])
    check_refuses(target, "too many candidates", request, names="candidates")


@must
def refuses_huge_bodies(target: Target) -> None:
    """A body that announces a terabyte is refused at once

    Compare Content-Length with a limit before reading, count what comes without one, and answer 413.
    """
    if not target.has_socket:
        raise CheckSkipped("not asked over a socket")
    check_refusal(
        target.announce_body(HUGE_BODY_BYTES, min(HUGE_BODY_TIMEOUT_S, target.timeout_s)), "a body of a terabyte"
    )


@must
def unknown_rankings(target: Target) -> None:
    """GET of a ranking that does not exist answers 404, DELETE too, or that there is no DELETE

    Answer 404 for every id that is not known: a trainer then asks again.
    """
    for method, right in (("GET", {404}), ("DELETE", {404, 405, 501})):
        if (status := target.send(method, f"v1/rankings/{UNKNOWN_RANKING}").status) not in right:
            raise CheckFailed(f"{method} /v1/rankings/{UNKNOWN_RANKING} answered {status}, not 404")
    for name in ("..%2f..%2fetc%2fpasswd", "x" * 4000):
        if not 400 <= (status := target.send("GET", f"v1/rankings/{name}").status) < 500:
            raise CheckFailed(f"GET /v1/rankings/{name[:30]} answered {status}, not 4xx")


@must
def survives_odd_methods(target: Target) -> None:
    """HEAD, OPTIONS, PUT and unknown paths never end in a 5xx

    Answer 404 and 405 for what is not offered.
    """
    tried = [(method, path) for method in ("HEAD", "OPTIONS", "PUT", "PATCH") for path in ("v1/rank", "v1/info")]
    for method, path in [*tried, ("GET", "v1/rank"), ("POST", "v1/info"), ("GET", ""), ("GET", "v1/%00"), ("HEAD", "")]:
        reply = target.send(method, path)
        if reply.status >= 500 and reply.status != 501:
            raise CheckFailed(f"{method} /{path} answered {reply.status}")


@should
def problem_json(target: Target) -> None:
    """Every refusal is RFC 9457 problem+json, with `errors` that name each field

    Answer {"type": "about:blank", "title": …, "status": 422, "detail": …, "errors": [{"field": …, "message": …}]} as
    application/problem+json, for unknown paths and methods too.
    """
    check_problem(target.send("GET", "v1/no-such-thing"), "an unknown path", 404)
    check_problem(target.send("GET", "v1/rank"), "GET /v1/rank", 404, 405)
    check_problem(target.send("GET", f"v1/rankings/{UNKNOWN_RANKING}"), "an unknown ranking", 404)
    not_json = target.send("POST", "v1/rank", content=b"{", headers={"content-type": "application/json"})
    check_problem(not_json, "broken JSON")
    problem = check_problem(target.post_rank(inputs.request_with_image(inputs.raw_image(b"no png"))), "no PNG")
    if not any(mentions_field(error.field, "candidates[1]") for error in problem.errors):
        raise CheckFailed(f"no PNG: `errors` does not name candidates[1]: {problem.errors}")
