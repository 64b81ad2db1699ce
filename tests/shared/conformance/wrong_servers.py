"""Servers that are wrong in one way each: the check that `WRONG` names fails, and says the words given there."""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field, replace

from . import faults
from .bent_server import (
    MAX_CANDIDATES,
    Bend,
    answers,
    asks,
    changed,
    dropped,
    each,
    info,
    refusals,
    reply,
    results,
    straight,
    to,
    with_key,
    without,
)
from .right_servers import OWN_SHAPE

HTML = reply(b"<h1>hello</h1>", 200, "text/html")


@dataclass(frozen=True)
class Wrong:
    """One fault: `check` fails and says `said`, after the checks in `also` ran."""

    bend: Bend
    check: str
    said: str
    patient: bool = False
    timeout_s: float = 6
    also: tuple[str, ...] = field(default=())


WRONG: dict[str, Wrong] = {
    # what it says of itself
    "never ready": Wrong(to("/readyz", reply({}, 503)), "alive", "/readyz answered 503"),
    "health behind the key": Wrong(faults.guards_health, "alive", "/livez answered 401"),
    "no metrics": Wrong(to("/metrics", reply({}, 404)), "metrics", "/metrics answered 404"),
    "an info of its own": Wrong(to("/v1/info", reply({"name": "x"})), "info", "not a valid RewardInfo: model: "),
    "another version": Wrong(info(protocol_version="2"), "info", "protocol_version is '2'"),
    "no PNG": Wrong(info(media_types=["image/webp"], latents=None), "info", "lacks image/png"),
    "latents without their media type": Wrong(info(media_types=["image/png"]), "info", "latents are described where"),
    "latents that it does not read": Wrong(faults.lists_latents_alone, "ranks_latents", "answered 415"),
    "any latents": Wrong(asks(faults.with_images), "refuses_wrong_latents", "latents of other channels: answered 200"),
    "more media types than it reads": Wrong(
        answers(lambda _: reply({"detail": "no"}, 415), status=200), "ranks_every_media_type", "answered 415"
    ),
    "no ranking without progress": Wrong(faults.needs_progress, "ranks_with_progress", "answered 422"),
    "no key needed": Wrong(asks(with_key), "key_needed", "without a key answered 200"),
    "any key will do": Wrong(
        asks(lambda asked: with_key(asked) if "authorization" in asked.headers else asked),
        "key_needed",
        "with a wrong key answered 200",
    ),
    "rankings are open": Wrong(
        asks(lambda asked: with_key(asked) if "rankings/" in asked.path else asked),
        "key_needed",
        "GET of a ranking without a key answered",
    ),
    # results
    "ids shuffled": Wrong(results(lambda found: found[::-1]), "ranks_json", "in this order"),
    "a result dropped": Wrong(results(lambda found: found[:-1]), "ranks_json", "results have ids"),
    "an id twice": Wrong(results(lambda found: [found[0]] * len(found)), "ranks_json", "results have ids"),
    "ids of its own": Wrong(each(lambda one: {"id": f"image-{one['id']}"}), "ranks_json", "results have ids"),
    "NaN": Wrong(each(lambda _: {"score": float("nan")}), "ranks_json", "results[0].score: "),
    "a score as text": Wrong(each(lambda one: {"score": str(one["score"]) + " of 10"}), "ranks_json", "valid number"),
    "a number as text": Wrong(each(lambda one: {"score": str(one["score"])}), "ranks_json", "results[0].score: "),
    "a word for a number": Wrong(each(lambda _: {"score": True}), "ranks_json", "results[0].score: "),
    "worst first": Wrong(each(lambda one: {"rank": 4 - one["rank"]}), "ranks_json", "1 is best"),
    "ranks from 0": Wrong(each(lambda one: {"rank": one["rank"] - 1}), "ranks_json", "rank: "),
    "no ranks": Wrong(each(lambda _: {"rank": None}), "ranks_json", "rank None"),
    "ties broken": Wrong(
        results(lambda found: [{**one, "score": 1.0, "rank": index + 1} for index, one in enumerate(found)]),
        "ranks_json",
        "ties share",
    ),
    "dense ranks": Wrong(each(lambda one: {"rank": min(one["rank"], 2)}), "ranks_json", "ties share"),
    "nulls without a reason": Wrong(each(lambda _: {"score": None, "rank": None}), "ranks_json", "must say why"),
    "a score and an error": Wrong(
        each(lambda _: {"error": {"code": "x", "message": "y"}}), "ranks_json", "a score and an error"
    ),
    "ranks alone, calibrated": Wrong(each(lambda _: {"score": None}), "ranks_json", "calibrated: false"),
    "ranks alone, from 2": Wrong(faults.ranks_from_two, "ranks_json", "has rank 2 among [2, 3, 4]"),
    "neither rank nor reason": Wrong(faults.leaves_one_out, "ranks_json", "has rank None and error None"),
    "ranks for some": Wrong(
        results(lambda found: [{**found[0], "score": None}, *found[1:]]), "ranks_json", "others have scores"
    ),
    "fields of its own": Wrong(each(lambda _: {"confidence": 1}), "ranks_json", "confidence: Extra inputs"),
    "only nulls": Wrong(
        each(lambda _: {"score": None, "rank": None, "error": {"code": "x", "message": "no face"}}),
        "scores_something",
        "four nulls: no face",
    ),
    "one score for all": Wrong(
        results(lambda found: faults.scored(found, [0.5] * len(found))), "tells_images_apart", "the same score, 0.5"
    ),
    "the same image, other scores": Wrong(results(faults.first_is_best), "ties_are_ties", "the same image three times"),
    "prefers the first": Wrong(results(faults.first_is_best), "order_independent", "sent in another order: id-"),
    "parts by their place": Wrong(
        faults.parts_by_place, "same_scores_in_every_form", "as JSON, then as multipart: id-"
    ),
    "dice": Wrong(faults.random_scores, "deterministic", "asked twice: id-"),
    "another revision": Wrong(info(model_revision="2"), "names_its_revision", "model_revision is '1'"),
    # how it answers
    "html": Wrong(to("/v1/rank", HTML), "ranks_json", "text/html"),
    "a content type of its own": Wrong(
        answers(lambda answer: reply(answer.json, kind="text/json")), "ranks_json", "text/json instead"
    ),
    "compressed": Wrong(
        answers(lambda answer: reply(gzip.compress(answer.body, mtime=0), **{"content-encoding": "gzip"})),
        "ranks_json",
        "Content-Encoding gzip",
    ),
    "a redirect": Wrong(
        to("/v1/rank", reply({}, 307, location="http://169.254.169.254/")), "ranks_json", "answered 307"
    ),
    "a huge answer": Wrong(to("/v1/rank", reply(b" " * 5_000_000)), "ranks_json", "more than"),
    "multipart that is not read": Wrong(faults.lost_in_upload, "ranks_multipart", "answered 415"),
    "fewer candidates than it says": Wrong(
        info(max_candidates=MAX_CANDIDATES + 2), "ranks_max_candidates", "answered 413"
    ),
    "images sent back": Wrong(refusals(faults.quoting), "answers_are_short", "without prompt: the answer has"),
    "computed again": Wrong(asks(without("idempotency-key")), "idempotent", "the repeat is another answer"),
    # what it refuses
    "scores everything": Wrong(refusals(faults.lax), "refuses_wrong_fields", "no prompt: answered 200"),
    "500 for a bad request": Wrong(
        refusals(lambda _, answer: reply({"detail": "KeyError"}, 500)), "refuses_wrong_fields", "answered 500, not 4xx"
    ),
    "refusals without a name": Wrong(refusals(faults.anonymous), "refuses_wrong_fields", "without naming 'prompt'"),
    "HTML for errors": Wrong(
        refusals(lambda _, answer: replace(HTML, status=answer.status)), "refuses_wrong_fields", "without naming"
    ),
    "misspelt fields are passed over": Wrong(
        asks(lambda asked: replace(asked, body=asked.body.replace(b', "surprise": 1', b""))),
        "refuses_unknown_fields",
        "an unknown field: answered 200",
    ),
    "500 for no JSON": Wrong(
        refusals(lambda asked, answer: answer if asked.json else reply({}, 500)), "refuses_what_is_not_json", "500"
    ),
    "lenient base64": Wrong(
        asks(lambda asked: replace(asked, body=asked.body.replace(b"!?", b""))),
        "refuses_bad_base64",
        "base64 with junk in it: answered 200",
    ),
    "fetches URLs": Wrong(faults.fetches, "never_fetches", "was fetched: b'GET /a.png"),
    "callbacks to anybody": Wrong(faults.calls_back_unsigned, "callbacks_are_signed", "without webhook-signature"),
    "guesses media types": Wrong(
        asks(lambda asked: replace(asked, body=asked.body.replace(b"image/svg+xml", b"image/png"))),
        "refuses_unknown_media_type",
        "calls itself SVG: answered 200",
    ),
    "0 for a corrupt image": Wrong(faults.zero_for_corrupt, "makes_up_no_scores", "nothing got the score"),
    "accepts huge images": Wrong(
        asks(lambda asked: faults.mended(asked, faults.is_large)),
        "refuses_huge_images",
        "pixels: answered 200",
    ),
    "max_candidates is but a word": Wrong(
        info(max_candidates=3), "refuses_too_many", "too many candidates: answered 2"
    ),
    "unpickles": Wrong(
        refusals(lambda asked, answer: reply({}, 500) if b"x-npy" in asked.body else answer), "refuses_pickles", "500"
    ),
    "waits for a terabyte": Wrong(straight, "refuses_huge_bodies", "no answer within", patient=True, timeout_s=3),
    "any ranking is pending": Wrong(
        refusals(lambda asked, answer: reply({"id": "x"}, 202) if "/v1/rankings/" in asked.path else answer),
        "unknown_rankings",
        "answered 202, not 404",
    ),
    "500 for HEAD": Wrong(
        answers(lambda answer: replace(answer, status=500), path="/v1/rank", status=405), "survives_odd_methods", "500"
    ),
    "errors in a shape of its own": Wrong(OWN_SHAPE, "problem_json", "not application/problem+json"),
    # many at once, and later
    "answers of another request": Wrong(faults.mixes_requests, "concurrent", "results have ids"),
    "scores of another request": Wrong(faults.mixes_scores, "same_scores_under_load", "asked alone, then with others"),
    "503 without a word": Wrong(to("/v1/rank", reply({}, 503)), "concurrent", "503 without Retry-After"),
    "blocks while scoring": Wrong(faults.blocks, "healthy_under_load", "/livez answered 200 after"),
    "202 without Location": Wrong(
        answers(lambda answer: dropped(answer, "location"), status=202), "pending_finishes", "Location None"
    ),
    "a Location elsewhere": Wrong(
        answers(lambda answer: replace(answer, headers={**answer.headers, "location": "http://x/"}), status=202),
        "pending_finishes",
        "not on this endpoint",
    ),
    "a Location that is none": Wrong(
        answers(lambda answer: replace(answer, headers={**answer.headers, "location": "http://["}), status=202),
        "pending_finishes",
        "not on this endpoint",
    ),
    "never finishes": Wrong(
        faults.never_finishes, "pending_finishes", "though it answers plain requests at once", timeout_s=2
    ),
    "another id when finished": Wrong(
        answers(lambda answer: changed(answer, id="rank_1"), path="/v1/rankings/"), "pending_finishes", "the 202 said"
    ),
    "gone once read": Wrong(faults.gone_once_read, "pending_finishes", "once read, the ranking is gone"),
    "no Retry-After": Wrong(
        answers(lambda answer: dropped(answer, "retry-after"), status=202), "pending_says_when", "without Retry-After"
    ),
    "cancel ignored": Wrong(faults.ignores_cancel, "pending_can_be_cancelled", "PendingRanking"),
    "dead after a GIF": Wrong(asks(faults.dies), "still_alive", "valid request", also=("refuses_unknown_media_type",)),
}
