"""UniRL's reward service: many rewards behind one `/score`, of which this asks one.

    python -m reward_service --config configs/service.yaml         registered with options.reward, as in hpsv3

Facts are of Tencent-Hunyuan/UniRL in 2026 (commits cb03dcd, 287aec0, 1715acd: unirl-reward-service/…/{schemas,server,
direct_server}.py), protocol version "1": `POST /score {protocol_version, requests: [{history: [{text, image_b64}],
required_rewards, metadata, request_id, idempotency_key}]}` answers `{results, errors, identities, protocol_version}`,
each a list in the order of the requests: `results[i][reward][metric]` is a number and `errors[i][reward]` says why
there is none. A metric that is not finite comes as null. Services before protocol_version answer results and errors
alone. `GET /rewards` lists the rewards, `GET /health` answers 200 once all are loaded.
"""

from __future__ import annotations

import time
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from dipole.client.adapters.base import ForeignAdapter, ForeignEndpointOptions, RankCall, choose_metric, finite_number
from dipole.client.connection import BoundedResponse, Deadline, EndpointError, invalid_response
from dipole.protocol.foreign_answers import ManyOrNull, OrNone
from dipole.protocol.schemas import ItemError, Many, RankedItem, Ranking, RewardInfo, Version, rank_scores

UNIRL_PROTOCOL_VERSION = "1"
MAX_REASON_CHARS = 500


class UnirlOptions(ForeignEndpointOptions):
    reward: Version = Field(
        min_length=1, description="Name of the service's reward that scores, as GET /rewards has it."
    )
    metric: str | None = Field(
        default=None,
        min_length=1,
        max_length=255,
        description="Metric of the reward that is the score; if absent, the one named as the reward, or the only one.",
    )


class _UnirlRewards(BaseModel):
    """`GET /rewards`."""

    rewards: Many[Version]


class _UnirlIdentity(BaseModel):
    request_id: str | None = None
    scorer_version: OrNone[Version] = None


class _UnirlScores(BaseModel):
    """The answer of `POST /score`. Of each result only the asked reward's score must be right."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    results: Many[dict[str, Any]]
    errors: ManyOrNull[dict[str, Any] | None] = []
    identities: ManyOrNull[_UnirlIdentity | None] = []
    protocol_version: str | None = None


class UnirlAdapter(ForeignAdapter[UnirlOptions]):
    recipe = "unirl-score/1"

    def fetch_info(self, deadline: Deadline) -> RewardInfo:
        url, wanted = self.connection.base_url, self.options.reward
        _, answer = self.connection.send_request("GET", f"{url}/rewards", deadline)
        offered = self.connection.parse_message(_UnirlRewards, answer).rewards
        if wanted not in offered:
            known = ", ".join(offered[:16]) or "nothing"
            message = f"{url} offers {known}, not {wanted}: register it with another options.reward"
            raise EndpointError(message, code="invalid_response", counts_as_failure=False)
        return self.describe_server(wanted, wanted)

    def build_request(self, job: RankCall, info: RewardInfo) -> tuple[str, dict[str, Any]]:
        requests = [
            {
                "history": [{"text": job.prompt, "image_b64": png}],
                "required_rewards": [self.options.reward],
                "metadata": None if job.metadata is None else dict(job.metadata),
                "request_id": f"c{index}",
                "idempotency_key": f"{job.key}.{index}",
            }
            for index, png in enumerate(job.base64_pngs())
        ]
        return "/score", {"json": {"protocol_version": UNIRL_PROTOCOL_VERSION, "requests": requests}}

    def read_answer(self, job: RankCall, status: int, answer: BoundedResponse) -> Ranking:
        url, count = self.connection.base_url, len(job)
        found = self.parse_scores(_UnirlScores, status, answer)
        if found.protocol_version not in (None, UNIRL_PROTOCOL_VERSION):
            raise invalid_response(
                f"{url} answered protocol_version {found.protocol_version[:40]!r}, not {UNIRL_PROTOCOL_VERSION!r}"
            )
        identities = [each or _UnirlIdentity() for each in found.identities]
        sizes = {"results": len(found.results), "errors": len(found.errors), "identities": len(identities)}
        for name, size in sizes.items():
            if size != count and (size or name == "results"):
                raise invalid_response(f"{url} answered {size} {name} for {count} candidates")
        if any(each.request_id not in (None, f"c{index}") for index, each in enumerate(identities)):
            raise invalid_response(f"{url} answered identities that are not those of the candidates, in their order")
        errors = [each or {} for each in found.errors or [None] * count]
        items = [self._ranked_item(index, *each) for index, each in enumerate(zip(found.results, errors, strict=True))]
        placed = zip(items, rank_scores([item.score for item in items]), strict=True)
        versions = {each.scorer_version for each in identities if each.scorer_version}
        return Ranking(
            id=job.key,
            created=int(time.time()),
            model=self.options.reward,
            model_revision=versions.pop() if len(versions) == 1 else self.options.revision,
            recipe_version=self.recipe,
            results=[item.model_copy(update={"rank": rank}) for item, rank in placed],
        )

    def _ranked_item(self, index: int, result: dict[str, Any], errors: dict[str, Any]) -> RankedItem:
        """One candidate's metrics, or why there are none."""
        url, reward, name = self.connection.base_url, self.options.reward, f"c{index}"
        metrics = result.get(reward)
        if metrics is None:
            if not errors.get(reward):
                raise invalid_response(f"{url} answered neither {reward} nor why for candidate {index}")
            reason = ItemError(code="reward-failed", message=str(errors[reward])[:MAX_REASON_CHARS])
            return RankedItem(id=name, score=None, error=reason)
        if not isinstance(metrics, dict):
            raise invalid_response(f"{url} answered no metrics of {reward} for candidate {index}")
        metric = choose_metric(metrics, chosen=self.options.metric, reward=reward, url=url)
        numbers = {part: finite_number(value) for part, value in metrics.items()}
        score = numbers[metric]
        if score is None and metrics[metric] is not None:
            why = f"{url} answered {metrics[metric]!r:.40} as {metric} of candidate {index}, which is no finite number"
            raise (
                EndpointError(why, code="not_finite", counts_as_failure=False)
                if isinstance(metrics[metric], float)
                else invalid_response(why)
            )
        return RankedItem(
            id=name,
            score=score,
            sub_scores={part: value for part, value in numbers.items() if value is not None},
            error=ItemError(code="not-finite", message="the score is not a number") if score is None else None,
        )
