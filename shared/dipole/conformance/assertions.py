"""What makes an answer right or wrong, whichever check asked for it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import ValidationError

from dipole.conformance.failures import CheckFailed
from dipole.protocol import problems
from dipole.protocol.schemas import Problem, Ranking
from dipole.protocol.validation import first_error

if TYPE_CHECKING:
    from dipole.conformance.reply import EndpointReply

SCORE_TOLERANCE = 5e-3  # of the group's largest score: bf16 rounds as much when a batch has another shape


def check_results(ranking: Ranking, ids: Sequence[str], *, calibrated: bool) -> None:
    """Request order and every id once; ranks that agree with scores, or ranks alone where only order is claimed."""
    found = [item.id for item in ranking.results]
    if found != list(ids):
        raise CheckFailed(f"results have ids {found[:8]}, the request had {list(ids)[:8]} in this order")
    scored = any(item.score is not None for item in ranking.results)
    if not scored and any(item.rank is not None for item in ranking.results):
        _check_ordinal_ranks(ranking, calibrated=calibrated)
    else:
        _check_ranks_agree(ranking)


def _check_ranks_agree(ranking: Ranking) -> None:
    known = [item.score for item in ranking.results if item.score is not None]
    for item in ranking.results:
        if item.score is None:
            if item.rank is not None:
                raise CheckFailed(f"{item.id} has a null score and the rank {item.rank}, and others have scores")
            if item.error is None:
                raise CheckFailed(f"{item.id} has a null score: its rank must be null and its error must say why")
            continue
        rank = 1 + sum(score > item.score for score in known)
        if item.rank != rank:
            raise CheckFailed(
                f"{item.id} has score {item.score} and rank {item.rank}; 1 is best and ties share, so {rank}"
            )
        if item.error is not None:
            raise CheckFailed(f"{item.id} has a score and an error")


def _check_ordinal_ranks(ranking: Ranking, *, calibrated: bool) -> None:
    if calibrated:
        raise CheckFailed("every score is null and ranks are given, but /v1/info does not say calibrated: false")
    known = [item.rank for item in ranking.results if item.rank is not None]
    for item in ranking.results:
        if (item.rank is None) != (item.error is not None):
            raise CheckFailed(
                f"{item.id} has rank {item.rank} and error {item.error}: one of the two, not both or neither"
            )
        if item.rank is not None and item.rank != (rank := 1 + sum(other < item.rank for other in known)):
            raise CheckFailed(
                f"{item.id} has rank {item.rank} among {sorted(known)}; ties share (1, 2, 2, 4), so {rank}"
            )


def check_same_scores(first: Ranking, second: Ranking, what: str) -> None:
    """The candidates of both, matched by id, have the same scores; or the same ranks where there are no scores."""
    others = {item.id: item for item in second.results}
    largest = max((abs(item.score) for item in first.results if item.score is not None), default=0.0)
    for item in first.results:
        other = others[item.id]
        if item.score is None or other.score is None:
            same = item.score == other.score and item.rank == other.rank
        else:
            same = abs(item.score - other.score) <= SCORE_TOLERANCE * largest
        if not same:
            raise CheckFailed(
                f"{what}: {item.id} had score {item.score} (rank {item.rank}), then {other.score} (rank {other.rank})"
            )


def check_refusal(reply: EndpointReply, what: str, names: str | None = None) -> None:
    """4xx, in a body of any shape that names the field to blame."""
    if not 400 <= reply.status < 500:
        raise CheckFailed(f"{what}: answered {reply.status}, not 4xx: {reply.excerpt()}")
    if names is not None and not mentions_field(reply.text(), names):
        raise CheckFailed(f"{what}: answered {reply.status} without naming {names!r}: {reply.excerpt()}")


def mentions_field(text: str, field: str) -> bool:
    """Whether `candidates[1].image` stands there, as such, as a JSON pointer, with dots, or as a list of its parts."""
    words = [re.escape(word) for word in re.findall(r"\w+", field)]
    return re.search(r"\b" + r"\W+".join(words) + r"\b", text) is not None


def check_problem(reply: EndpointReply, what: str, *statuses: int) -> Problem:
    """4xx, or one of `statuses`, as RFC 9457 problem+json."""
    allowed = reply.status in statuses if statuses else 400 <= reply.status < 500
    if not allowed:
        raise CheckFailed(f"{what}: answered {reply.status}, not {' or '.join(map(str, statuses)) or '4xx'}")
    if reply.media_type != problems.PROBLEM_JSON:
        raise CheckFailed(
            f"{what}: answered {reply.status} as {reply.media_type or 'no content type'}, not {problems.PROBLEM_JSON}"
        )
    try:
        problem = Problem.model_validate_json(reply.body)
    except ValidationError as error:
        raise CheckFailed(f"{what}: not a problem document: {first_error(error).message}") from None
    if problem.status != reply.status:
        raise CheckFailed(f"{what}: the document says {problem.status}, the answer {reply.status}")
    return problem
