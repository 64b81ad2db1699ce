"""The ranking protocol itself: `GET /v1/info`, `POST /v1/rank`, and `GET` of a pending ranking's Location."""

from __future__ import annotations

from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx

from dipole.client.adapters.base import Adapter, Job, Options
from dipole.client.connection import Answer, Deadline, EndpointError, invalid
from dipole.protocol import images
from dipole.protocol.schemas import PendingRanking, Ranking, RewardInfo


class DipoleOptions(Options):
    """None: it describes itself."""


class DipoleAdapter(Adapter[DipoleOptions]):
    ready_path = "/readyz"

    def info(self, deadline: Deadline) -> RewardInfo:
        _, answer = self.connection.send("GET", f"{self.connection.base_url}/v1/info", deadline)
        return self.connection.parsed(RewardInfo, answer)

    def request(self, job: Job, info: RewardInfo) -> tuple[str, dict[str, Any]]:
        body = job.body(multipart=info.multipart and images.NPY in info.media_types)
        return "/v1/rank", {"headers": {"Idempotency-Key": job.key}, **body}

    def read(self, job: Job, status: int, answer: Answer) -> Ranking | None:
        url = self.connection.base_url
        if status == 200 and (job.location is None or b'"results"' in answer.body):
            ranking = self.connection.parsed(Ranking, answer)
            _check(ranking, len(job), url)
            return ranking
        state = self.connection.parsed(PendingRanking, answer)
        if state.status != "pending":
            job.location = None
            reason = state.error.message if state.error else "no reason given"
            code = "cancelled" if state.status == "cancelled" else "http_status"
            raise EndpointError(f"{url}: the ranking was {state.status}: {reason}", code=code, sick=False)
        if answer.location is not None or job.location is None:
            job.location = _location(answer.location, url)
        job.poll_after = 1.0 if answer.retry_after is None else answer.retry_after
        return None


def _location(said: str | None, url: str) -> str:
    """Where to look for a pending ranking: on the endpoint itself, and an address that can be asked."""
    try:
        location = urljoin(f"{url}/v1/rank", said or "")
        if said and urlsplit(location)[:2] == urlsplit(url)[:2]:
            return str(httpx.URL(location))
    except (ValueError, httpx.InvalidURL):
        pass
    raise invalid(f"{url} answered 202 with Location {said!r:.200}, which is not its own")


def _check(ranking: Ranking, count: int, url: str) -> None:
    """Every candidate exactly once and in the order sent."""
    if len(ranking.results) != count:
        raise invalid(f"{url} answered {len(ranking.results)} results for {count} candidates")
    ids, sent = [item.id for item in ranking.results], [f"c{index}" for index in range(count)]
    if ids != sent:
        how = (
            "twice" if len(set(ids)) < count else "in another order" if set(ids) == set(sent) else "that were not sent"
        )
        raise invalid(f"{url} answered ids {how}")
