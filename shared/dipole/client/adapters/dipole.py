"""The ranking protocol itself: `GET /v1/info`, `POST /v1/rank`, and `GET` of a pending ranking's Location."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from dipole.client.adapters.base import EndpointAdapter, EndpointOptions, RankCall
from dipole.client.connection import BoundedResponse, Deadline, EndpointError, invalid_response
from dipole.protocol import images
from dipole.protocol.locations import resolve_location
from dipole.protocol.schemas import PendingRanking, Ranking, RewardInfo


class DipoleOptions(EndpointOptions):
    """All else it says of itself."""

    colocated: bool = Field(
        default=False,
        description="Whether it shares a GPU with the trainer: rank workers then have it move its weights to the host "
        "whenever nothing is to be ranked (`POST /v1/sleep`). One process serves it.",
    )


class DipoleAdapter(EndpointAdapter[DipoleOptions]):
    ready_path = "/readyz"

    def fetch_info(self, deadline: Deadline) -> RewardInfo:
        _, answer = self.connection.send_request("GET", f"{self.connection.base_url}/v1/info", deadline)
        return self.connection.parse_message(RewardInfo, answer)

    def build_request(self, job: RankCall, info: RewardInfo) -> tuple[str, dict[str, Any]]:
        # latents are asked for where /v1/info offers them, which needs no further type
        sends_npy = job.vae is not None or images.NPY in info.media_types
        multipart = info.multipart and sends_npy
        body = job.request_body(
            multipart=multipart, tells_progress="progress" in info.wants, is_stored=job.is_stored_for(info)
        )
        return "/v1/rank", {**body, "headers": {**body.get("headers", {}), "Idempotency-Key": job.key}}

    def read_answer(self, job: RankCall, status: int, answer: BoundedResponse) -> Ranking | None:
        url = self.connection.base_url
        if status == 200 and (job.location is None or b'"results"' in answer.body):
            ranking = self.connection.parse_message(Ranking, answer)
            _check_ranking(ranking, len(job), url)
            return ranking
        state = self.connection.parse_message(PendingRanking, answer)
        if state.status != "pending":
            job.location = None
            reason = state.error.message if state.error else "no reason given"
            code = "cancelled" if state.status == "cancelled" else "http_status"
            raise EndpointError(f"{url}: the ranking was {state.status}: {reason}", code=code, counts_as_failure=False)
        # it stays where it was promised, whatever later answers say
        if job.location is None:
            job.location = resolve_location(answer.location, url) if answer.location else None
            if job.location is None:
                raise invalid_response(
                    f"{url} answered 202 with Location {answer.location!r:.200}, which is not its own"
                )
        job.poll_after = 1.0 if answer.retry_after is None else answer.retry_after
        return None


def _check_ranking(ranking: Ranking, count: int, url: str) -> None:
    """Every candidate exactly once and in the order sent."""
    if len(ranking.results) != count:
        raise invalid_response(f"{url} answered {len(ranking.results)} results for {count} candidates")
    ids, sent = [item.id for item in ranking.results], [f"c{index}" for index in range(count)]
    if ids != sent:
        how = (
            "twice" if len(set(ids)) < count else "in another order" if set(ids) == set(sent) else "that were not sent"
        )
        raise invalid_response(f"{url} answered ids {how}")
