"""cosmos-rl's reward service: a batch is enqueued, and its scores are pulled until they are there.

    cosmos-rl-reward --config rewards.toml      registered with options.reward, a `reward_type` that it has enabled

Facts are of nvidia-cosmos/cosmos-rl at 89f2e5b (reward_service/: README.md, cosmos_rl_reward/launcher/reward_serve.py,
handler/{decode,reward_base}.py, model/*.py). `POST /api/reward/enqueue` takes a line of JSON, `{prompts, reward_fn:
{reward: weight}, media_type: "image"}`, and after it a .npy of uint8 (K, H, W, 3); it answers `{uuid}`, and on Lepton
`{uuid, replica_id}`. `POST /api/reward/pull` takes the form fields `uuid` and `type`; it answers 400
`{message: "Not found scores for …"}` until the scores are there, then `{scores: {metric: [K numbers]}, type, …}`, or
`{error, scores: null, type, …}`. What failed in another way is never told: it stays "not found". `POST
/api/reward/ping` says that the service is there; it is a FastAPI app, whose /openapi.json is all that answers a GET.
"""

from __future__ import annotations

import io
import json
from typing import Any

import httpx
import numpy as np
from pydantic import BaseModel, Field

from dipole.client.adapters.base import ForeignAdapter, ForeignEndpointOptions, RankCall, choose_metric, finite_number
from dipole.client.connection import BoundedResponse, Deadline, EndpointError, invalid_response
from dipole.protocol.foreign_answers import OrNone
from dipole.protocol.schemas import Identifier, Ranking, RewardInfo, Version

PULL_PATH = "/api/reward/pull"
NOT_YET = "Not found scores"
PULL_INTERVAL_S = 0.25
REPLICA_HEADER = "X-Lepton-Replica-Target"


class CosmosRlOptions(ForeignEndpointOptions):
    reward: Version = Field(
        min_length=1, description="The service's reward that scores: a `reward_type` of its config."
    )
    metric: str | None = Field(
        default=None,
        min_length=1,
        max_length=255,
        description="Metric of the reward that is the score; if absent, the one named as the reward, or the only one.",
    )


class _CosmosTicket(BaseModel):
    """The answer of `/api/reward/enqueue`."""

    uuid: Identifier
    replica_id: Identifier | None = None


class _CosmosScores(BaseModel):
    """The answer of `/api/reward/pull` once there are scores. Of the metrics only the chosen one must be right."""

    scores: dict[str, Any] | None
    error: OrNone[str] = None
    type: str


class CosmosRlAdapter(ForeignAdapter[CosmosRlOptions]):
    ready_path = "/openapi.json"
    score_path = "/api/reward/enqueue"
    recipe = "cosmos-rl-reward/1"
    withdraws = False
    pending_hint = "; it never says that it failed: look at its log, and whether options.reward is enabled there"

    def fetch_info(self, deadline: Deadline) -> RewardInfo:
        url = f"{self.connection.base_url}/api/reward/ping"
        self.connection.send_request("POST", url, deadline, data={"info_data": "{}"})
        return self.describe_server("cosmos-rl-reward", self.options.reward)

    def build_request(self, job: RankCall, info: RewardInfo) -> tuple[str, dict[str, Any]]:
        described: dict[str, Any] = {
            "prompts": [job.prompt] * len(job),
            "reward_fn": {self.options.reward: 1.0},
            "media_type": "image",
        }
        asked = job.metadata or {}
        if "tag" in asked and "include" in asked:  # a line of GenEval's
            described |= {"geneval_tags": [asked["tag"]] * len(job), "geneval_includes": [asked["include"]] * len(job)}
        pixels = job.pixels()
        if len({one.shape for one in pixels}) > 1:
            message = f"{self.connection.base_url} takes images of one size, and these have several"
            raise EndpointError(message, code="too_large", counts_as_failure=False)
        array = io.BytesIO()
        np.save(array, np.stack(pixels), allow_pickle=False)
        body = json.dumps(described).encode() + b"\n" + array.getvalue()
        return self.score_path, {"content": body, "headers": {"Content-Type": "application/octet-stream"}}

    def read_answer(self, job: RankCall, status: int, answer: BoundedResponse) -> Ranking | None:
        ticket = self.parse_scores(_CosmosTicket, status, answer)
        replica = {"replica": ticket.replica_id} if ticket.replica_id else {}
        url = httpx.URL(f"{self.connection.base_url}{PULL_PATH}", params={"uuid": ticket.uuid, **replica})
        job.location, job.poll_after = str(url), PULL_INTERVAL_S
        return None

    def poll_ranking(self, job: RankCall, location: str, deadline: Deadline) -> Ranking | None:
        """A location is the address of the pull, with what its form and headers are to say as its query."""
        named = httpx.URL(location).params
        form = {"uuid": named.get("uuid", ""), "type": self.options.reward}
        headers = {REPLICA_HEADER: named["replica"]} if "replica" in named else {}
        url = f"{self.connection.base_url}{PULL_PATH}"
        try:
            status, answer = self.connection.send_request("POST", url, deadline, data=form, headers=headers)
        except EndpointError as error:
            if error.http_status == 400 and NOT_YET in str(error):
                job.poll_after = PULL_INTERVAL_S
                return None
            raise
        return self._read_scores(job, self.parse_scores(_CosmosScores, status, answer))

    def _read_scores(self, job: RankCall, found: _CosmosScores) -> Ranking:
        url, reward = self.connection.base_url, self.options.reward
        if found.type != reward:
            raise invalid_response(f"{url} answered scores of {found.type[:64]!r}, not of {reward!r}")
        if found.scores is None:
            why = found.error or "no reason given"
            raise EndpointError(f"{url} could not score: {why}", code="http_status", counts_as_failure=False)
        metric = choose_metric(found.scores, chosen=self.options.metric, reward=reward, url=url)
        ranking = self.rank_floats(job, reward, self._finite_scores(metric, found.scores[metric]))
        parts = {name: found.scores[name] for name in found.scores if _are_scores(found.scores[name], len(job))}
        items = [
            item.model_copy(update={"sub_scores": {name: float(values[index]) for name, values in parts.items()}})
            for index, item in enumerate(ranking.results)
        ]
        return ranking.model_copy(update={"results": items})

    def _finite_scores(self, metric: str, values: Any) -> list[float]:
        url = self.connection.base_url
        if not isinstance(values, list):
            raise invalid_response(f"{url} answered {metric} as something else than a list of numbers")
        numbers = [finite_number(value) for value in values]
        for value, number in zip(values, numbers, strict=True):
            if number is None and isinstance(value, float):
                message = f"{url} answered {metric} with a number that is not finite"
                raise EndpointError(message, code="not_finite", counts_as_failure=False)
            if number is None:
                raise invalid_response(f"{url} answered {value!r:.40} in {metric}, which is no number")
        return [number for number in numbers if number is not None]


def _are_scores(values: Any, count: int) -> bool:
    """Whether another metric is a finite number for each candidate too."""
    return isinstance(values, list) and len(values) == count and all(finite_number(one) is not None for one in values)
