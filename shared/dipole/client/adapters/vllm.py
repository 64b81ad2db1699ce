"""vLLM's score API: one prompt against K images, for rerankers and embedders that see (Qwen3-VL-Reranker, jina-m0).

    vllm serve Qwen/Qwen3-VL-Reranker-2B --runner pooling …        registered with its base URL, without /v1

Facts are of vLLM's main branch in 2026 (commits 055e47c, 063da22: docs/models/pooling_models/scoring.md,
entrypoints/pooling/scoring/protocol.py) and hold since 0.16: `POST /score {model?, queries, documents}`, where a
document is `{"content": [{"type": "image_url", "image_url": {"url": "data:…"}}]}` and 1×N is one query and a
list; the answer is `{id, object, created, model, data: [{index, object: "score", score}], usage}`. Before 0.16 a list
held texts only: those versions refuse this request. `GET /v1/models` lists what is served,
`GET /health` answers 200 and nothing else.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

from pydantic import BaseModel, Field

from dipole.client.adapters.base import ForeignAdapter, ForeignEndpointOptions, RankCall
from dipole.client.connection import BoundedResponse, Deadline, EndpointError, invalid_response
from dipole.protocol.foreign_answers import OrNone
from dipole.protocol.schemas import Many, RankedItem, Ranking, RewardInfo, Version, rank_scores

VllmNumber = Annotated[float, Field(strict=True, allow_inf_nan=False)]
VllmIndex = Annotated[int, Field(strict=True)]
UNNAMED_MODEL = "unknown"


class VllmOptions(ForeignEndpointOptions):
    model: Version | None = Field(
        default=None, min_length=1, description="Name of the served model that scores; the first if absent."
    )


class _VllmModel(BaseModel):
    id: Version


class _VllmModels(BaseModel):
    """`GET /v1/models`; whatever else it says is its own."""

    data: Many[_VllmModel] = Field(min_length=1)


class _VllmScore(BaseModel):
    index: VllmIndex
    score: VllmNumber


class _VllmScores(BaseModel):
    """The answer of `POST /score`. Only its scores must be right: proxies in front of vLLM change the rest."""

    id: OrNone[Version] = None
    created: OrNone[int] = None
    model: OrNone[Version] = None
    data: Many[_VllmScore]
    usage: OrNone[dict[str, Any]] = None


class VllmAdapter(ForeignAdapter[VllmOptions]):
    recipe = "vllm-score/1"

    def fetch_info(self, deadline: Deadline) -> RewardInfo:
        url, wanted = self.connection.base_url, self.options.model
        _, answer = self.connection.send_request("GET", f"{url}/v1/models", deadline)
        served = [model.id for model in self.connection.parse_message(_VllmModels, answer).data]
        if wanted is not None and wanted not in served:
            message = f"{url} serves {', '.join(served[:8])}, not {wanted}: register it with another options.model"
            raise EndpointError(message, code="invalid_response", counts_as_failure=False)
        return self.describe_server("vllm-score", wanted or served[0])

    def build_request(self, job: RankCall, info: RewardInfo) -> tuple[str, dict[str, Any]]:
        documents = [
            {"content": [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png}"}}]}
            for png in job.base64_pngs()
        ]
        return "/score", {"json": {"model": info.model, "queries": job.prompt, "documents": documents}}

    def read_answer(self, job: RankCall, status: int, answer: BoundedResponse) -> Ranking:
        url = self.connection.base_url
        found = self.parse_scores(_VllmScores, status, answer)
        if len(found.data) != len(job):
            raise invalid_response(f"{url} answered {len(found.data)} scores for {len(job)} candidates")
        if [each.index for each in found.data] != list(range(len(job))):
            raise invalid_response(f"{url} answered indices that are not those of the candidates, in their order")
        scores = [each.score for each in found.data]
        return Ranking(
            id=found.id or job.key,
            created=found.created or int(time.time()),
            model=found.model or self.options.model or UNNAMED_MODEL,
            model_revision=self.options.revision,
            recipe_version=self.recipe,
            results=[
                RankedItem(id=f"c{index}", score=score, rank=rank)
                for index, (score, rank) in enumerate(zip(scores, rank_scores(scores), strict=True))
            ],
            usage=found.usage or {},
        )
