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

from typing import Annotated, Any

from pydantic import BaseModel, Field

from dipole.client.adapters.base import ForeignAdapter, ForeignOptions, Job
from dipole.client.connection import Answer, Deadline, EndpointError, invalid
from dipole.protocol.schemas import Many, RankedItem, Ranking, RewardInfo, Version, ranks

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Index = Annotated[int, Field(strict=True)]


class VllmOptions(ForeignOptions):
    model: Version | None = Field(
        default=None, min_length=1, description="Which of the served models scores; absent: the first."
    )


class _Model(BaseModel):
    id: Version


class _Models(BaseModel):
    """`GET /v1/models`; whatever else it says is its own."""

    data: Many[_Model] = Field(min_length=1)


class _Score(BaseModel):
    index: Index
    score: Number


class _Scores(BaseModel):
    """The answer of `POST /score`."""

    id: str = Field(max_length=255)
    created: Index
    model: Version
    data: Many[_Score]
    usage: dict[str, Any] = {}


class VllmAdapter(ForeignAdapter[VllmOptions]):
    recipe = "vllm-score/1"

    def info(self, deadline: Deadline) -> RewardInfo:
        url, wanted = self.connection.base_url, self.options.model
        _, answer = self.connection.send("GET", f"{url}/v1/models", deadline)
        served = [model.id for model in self.connection.parsed(_Models, answer).data]
        if wanted is not None and wanted not in served:
            message = f"{url} serves {', '.join(served[:8])}, not {wanted}: register it with another options.model"
            raise EndpointError(message, code="invalid_response", sick=False)
        return self.described("vllm-score", wanted or served[0])

    def request(self, job: Job, info: RewardInfo) -> tuple[str, dict[str, Any]]:
        documents = [
            {"content": [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png}"}}]}
            for png in job.pngs()
        ]
        return "/score", {"json": {"model": info.model, "queries": job.prompt, "documents": documents}}

    def read(self, job: Job, status: int, answer: Answer) -> Ranking:
        url = self.connection.base_url
        found = self.scored(_Scores, status, answer)
        if len(found.data) != len(job):
            raise invalid(f"{url} answered {len(found.data)} scores for {len(job)} candidates")
        if [each.index for each in found.data] != list(range(len(job))):
            raise invalid(f"{url} answered indices that are not those of the candidates, in their order")
        scores = [each.score for each in found.data]
        return Ranking(
            id=found.id,
            created=found.created,
            model=found.model,
            model_revision=self.options.revision,
            recipe_version=self.recipe,
            results=[
                RankedItem(id=f"c{index}", score=score, rank=rank)
                for index, (score, rank) in enumerate(zip(scores, ranks(scores), strict=True))
            ],
            usage=found.usage,
        )
