"""Checks of what an endpoint says of itself and of its answers to requests that are right."""

from __future__ import annotations

import uuid
from typing import Any

from dipole.conformance import inputs
from dipole.conformance.assertions import check_problem, check_refusal, check_same_scores
from dipole.conformance.checks import must, should
from dipole.conformance.failures import CheckFailed, CheckSkipped
from dipole.conformance.target import ASYNC_HEADERS, Target
from dipole.protocol import images
from dipole.protocol.latents import LATENTS
from dipole.protocol.schemas import MAX_PROMPT_CHARS, PROTOCOL_VERSION

MAX_TRIED_CANDIDATES = 256  # more candidates than this are not tried
SHORT_ANSWER_BYTES = 256 * 1024


# ---- what it says of itself


@must
def alive(target: Target) -> None:
    """/livez and /readyz answer 200, without a key

    Answer 200 on both with any body and to anybody; let /readyz answer 503 while weights load.
    """
    for path in ("livez", "readyz"):
        if (reply := target.send("GET", path, key=None)).status != 200:
            raise CheckFailed(f"/{path} answered {reply.status}")


@should
def metrics(target: Target) -> None:
    """/metrics answers Prometheus text, without a key

    Count requests, images and nulls with a Prometheus client library and serve its text at /metrics.
    """
    reply = target.send("GET", "metrics", key=None)
    if reply.status != 200:
        raise CheckFailed(f"/metrics answered {reply.status}")
    if reply.media_type not in ("text/plain", "application/openmetrics-text"):
        raise CheckFailed(f"/metrics answered {reply.media_type or 'no content type'}")


@must
def info(target: Target) -> None:
    """/v1/info is a valid RewardInfo of this protocol version and accepts PNG

    Answer the document of docs/protocol.md, with no fields of your own, as application/json.
    """
    if target.info.protocol_version != PROTOCOL_VERSION:
        raise CheckFailed(f"protocol_version is {target.info.protocol_version!r}, not {PROTOCOL_VERSION!r}")
    if "image/png" not in target.info.media_types:
        raise CheckFailed("media_types lacks image/png, which every endpoint accepts")


@must
def key_needed(target: Target) -> None:
    """Without the key, or with another, the answer is 401

    Compare the bearer key before reading the body, on every route but /livez, /readyz and /metrics.
    """
    if not target.key:
        raise CheckSkipped("no --key given")
    for what, key in (("without a key", None), ("with a wrong key", f"{target.key}x"), ("with a short key", "x")):
        if (reply := target.post_rank(inputs.rank_request(), key=key)).status != 401:
            raise CheckFailed(f"POST /v1/rank {what} answered {reply.status}, not 401")
    reply = target.post_rank(inputs.rank_request(), headers=ASYNC_HEADERS)
    if reply.status == 202:
        where = target.location_of(reply)
        for method in ("GET", "DELETE"):
            if (open_to_all := target.send(method, where, key=None)).status != 401:
                raise CheckFailed(f"{method} of a ranking without a key answered {open_to_all.status}, not 401")
        target.cancel_ranking(where)


# ---- what it answers


@must
def ranks_json(target: Target) -> None:
    """A JSON request gets a valid Ranking: every id once and in order, ranks that agree with scores

    Answer every candidate in the order asked; rank 1 is the best, equal scores share a rank (1, 2, 2, 4). A candidate
    without a score has null for both and an error. Ranks without any score need calibrated: false in /v1/info.
    """
    target.rank(inputs.rank_request())


@should
def scores_something(target: Target) -> None:
    """Plain images get scores or ranks, not only nulls

    A trainer learns nothing from groups of nulls; if the reward cannot judge a grey image with a square, ignore this.
    """
    ranking = target.rank(inputs.rank_request(target.sample_images()[: target.info.max_candidates]))
    reasons = [item.error for item in ranking.results if item.rank is None and item.error is not None]
    if len(reasons) < len(ranking.results):
        return
    if target.metadata is None and all(reason.code == "missing_metadata" for reason in reasons):
        raise CheckSkipped(f"give --metadata: {reasons[0].message}")
    given = "every image that was given is null" if target.images else "four images, four nulls"
    raise CheckFailed(f"{given}: {reasons[0].message}", is_grave=bool(target.images))


@should
def tells_images_apart(target: Target) -> None:
    """Images that differ do not all have the same score

    Look whether the images reach the model: without image tokens in a template, with another model, or with an answer
    that nobody parses, all score alike. A reward that looks for what the prompt names, such as written words, needs
    --prompt and --image, the latter twice: an image that has it and one that has not.
    """
    ranking = target.rank(inputs.rank_request(target.sample_images()[: target.info.max_candidates]))
    ranked = [item for item in ranking.results if item.rank is not None]
    if len(ranked) < 2:
        raise CheckSkipped(f"{len(ranked)} of {len(ranking.results)} images have a score")
    if all(item.rank == ranked[0].rank for item in ranked):
        given = len(target.images) > 1
        raise CheckFailed(f"{len(ranked)} images that differ have the same score, {ranked[0].score}", is_grave=given)


@must
def ranks_with_progress(target: Target) -> None:
    """What wants progress ranks at any of it, and without it

    An evaluation and everybody who does not train send no progress. Take it as absent then, or as 0; anything outside
    0 to 1 is a 422 that names the field.
    """
    if "progress" not in target.info.wants:
        return  # nobody sends it, and this kit neither: the server may refuse a field that it does not know
    target.rank(inputs.rank_request())
    for progress in (0, 0.5, 1):
        target.rank(inputs.rank_request(progress=progress))
    check_refusal(target.post_rank(inputs.rank_request(progress=1.5)), "progress 1.5", "progress")


@must
def ranks_every_media_type(target: Target) -> None:
    """Every media type of /v1/info is accepted

    List in media_types only what is decoded.
    """
    for kind in target.info.media_types:
        if kind == LATENTS:  # a check of their own
            continue
        target.rank(inputs.request_with_image(inputs.image_part(inputs.make_swatch(), kind)))


@must
def ranks_multipart(target: Target) -> None:
    """What says multipart: true ranks a multipart request with binary parts

    Read the JSON from the part named request and each image from the part named by its id, or say multipart: false.
    """
    if not target.info.multipart:
        raise CheckSkipped("/v1/info says multipart: false")
    kind = images.NPY if images.NPY in target.info.media_types else "image/png"
    request, arguments = inputs.multipart_request(kind, target.metadata, target.prompt)
    target.rank(request, **arguments)


@should
def same_scores_in_every_form(target: Target) -> None:
    """The same images have the same scores as PNG, WebP or npy, in JSON or as parts of multipart in any order

    Bring every form to the same array: upright, RGB and not BGR, rows first. Find parts by the id of their candidate.
    """
    request, offered = inputs.rank_request(), target.info.media_types
    first = target.rank(request)
    for kind in [kind for kind in ("image/webp", images.NPY) if kind in offered]:
        candidates = [
            {**one, "image": inputs.image_part(inputs.make_swatch(k), kind)}
            for k, one in enumerate(request["candidates"])
        ]
        check_same_scores(first, target.rank({**request, "candidates": candidates}), f"as PNG, then as {kind}")
    if target.info.multipart:
        parts, arguments = inputs.multipart_request(
            images.NPY if images.NPY in offered else "image/png", target.metadata, target.prompt
        )
        turned = {**arguments, "files": arguments["files"][::-1]}
        check_same_scores(first, target.rank(parts, **turned), "as JSON, then as multipart")


@must
def ranks_one(target: Target) -> None:
    """A single candidate is ranked, with metadata that the endpoint does not know

    Take metadata as an object of any content and ignore what is not needed.
    """
    metadata = {"tag": "single_object", "include": [{"class": "square", "count": 1}], "note": None, "n": 1.5}
    target.rank(inputs.rank_request(1, metadata=metadata))


def check_ranked_or_refused(target: Target, request: dict[str, Any], what: str, *, names: str) -> None:
    reply = target.post_rank(request)
    if 400 <= reply.status < 500:
        check_refusal(reply, what, names=names)
    else:
        target.parse_ranking(request, reply)


@must
def ranks_any_prompt(target: Target) -> None:
    """Empty, non-Latin and the longest prompts are ranked, or refused by name

    Cut a prompt of up to 10,000 characters to what the model reads; refuse one that cannot be judged with 422.
    """
    odd = {"an empty prompt": "", "a non-Latin prompt": "один красный квадрат 🟥\n\t漢字 \u202eقطة"}
    for what, prompt in {**odd, "a long prompt": ("a red cat " * MAX_PROMPT_CHARS)[:MAX_PROMPT_CHARS]}.items():
        check_ranked_or_refused(target, inputs.rank_request(2, prompt=prompt), what, names="prompt")


@must
def ranks_odd_images(target: Target) -> None:
    """Images of one pixel, one row, grey, transparent, with a palette or 16 bits are ranked, null, or refused by name

    Convert to 8 bit RGB after decoding, and resize up where the model needs a size.
    """
    for what, data in inputs.odd_pngs().items():
        check_ranked_or_refused(target, inputs.request_with_image(inputs.raw_image(data)), what, names="candidates[1]")


@must
def ranks_max_candidates(target: Target) -> None:
    """As many candidates as max_candidates are ranked

    Say in /v1/info what is really taken, the limit of the body's bytes included.
    """
    count = target.info.max_candidates
    if count > MAX_TRIED_CANDIDATES:
        raise CheckSkipped(f"max_candidates is {count}: too many to try")
    target.rank(inputs.rank_request([inputs.make_swatch(index, size=16) for index in range(count)]))


@must
def names_its_revision(target: Target) -> None:
    """Every answer carries the model, model_revision and recipe_version of /v1/info

    A trainer keeps them with every score. Take them from one place, and give no empty ones.
    """
    ranking, known = target.rank(inputs.rank_request()), target.info
    for name in ("model", "model_revision", "recipe_version"):
        if not getattr(ranking, name) or getattr(ranking, name) != getattr(known, name):
            raise CheckFailed(f"{name} is {getattr(ranking, name)!r}, /v1/info says {getattr(known, name)!r}")


@should
def ties_are_ties(target: Target) -> None:
    """Equal images have equal scores and share a rank

    Do not break ties: a trainer leaves out candidates that cannot be told apart. Judges that are asked once an image
    may differ from themselves; ask them once per distinct image.
    """
    ranking = target.rank(
        inputs.rank_request(
            [inputs.make_swatch(1), inputs.make_swatch(1), inputs.make_swatch(2), inputs.make_swatch(1)]
        )
    )
    equal = [ranking.results[index] for index in (0, 1, 3)]
    if len({(item.score, item.rank) for item in equal}) > 1:
        raise CheckFailed(f"the same image three times got {[(item.score, item.rank) for item in equal]}")


@should
def deterministic(target: Target) -> None:
    """The same request twice gets the same scores

    Fix seeds, sample with temperature 0, switch dropout off. People and some judges cannot; then ignore this.
    """
    request = inputs.rank_request(target.images or 4)
    check_same_scores(target.rank(request), target.rank(request), "asked twice")


@should
def order_independent(target: Target) -> None:
    """The order in which candidates are sent does not change their scores

    Score each image by itself; let a judge of pairs see each pair in both orders.
    """
    request = inputs.rank_request(target.images or 4)
    turned = {**request, "candidates": request["candidates"][::-1]}
    check_same_scores(target.rank(request), target.rank(turned), "sent in another order")


@should
def answers_are_short(target: Target) -> None:
    """Answers and refusals do not send the images back

    Name fields instead of quoting their values: FastAPI's own 422 quotes its input, replace its handler.
    """
    request = inputs.rank_request([inputs.make_noise(), inputs.make_swatch()])
    unnamed = {"candidates": request["candidates"]}
    for what, sent in (("a large image", request), ("a request without prompt", unnamed)):
        reply = target.post_rank(sent)
        if len(reply.body) > SHORT_ANSWER_BYTES:
            raise CheckFailed(f"{what}: the answer has {len(reply.body)} bytes")
        if reply.status == 202:
            target.cancel_ranking(target.location_of(reply))


@should
def idempotent(target: Target) -> None:
    """The same Idempotency-Key and body get the first answer; another body gets 409 or 422

    Keep answers for some minutes under the key with a hash of the body. A trainer that lost an answer asks again.
    """
    key, request = {"Idempotency-Key": f"check-{uuid.uuid4().hex}"}, inputs.rank_request()
    first, second = (target.parse_ranking(request, target.post_rank(request, headers=key)) for _ in range(2))
    if first != second:
        raise CheckFailed(f"the repeat is another answer: {first.id}, created {first.created}, then {second.id}")
    other = target.post_rank(inputs.rank_request(prompt="another prompt"), headers=key)
    check_problem(other, "a used key with another body", 409, 422)
