"""Flow-Factory's reward server: one reward behind `/compute`, whatever the author put into `compute_reward`.

    python reward_server/example_server.py --port 8000      registered with its base URL

Facts are of X-GenGroup/Flow-Factory at a0b2bc5 (reward_server/example_server.py, src/flow_factory/rewards/
my_reward_remote.py): `POST /compute {prompt: [K texts], image: [K base64 PNGs], video: null, condition_images: null,
condition_videos: null}` answers `{rewards: [K numbers]}`; a failure is 500 with `detail`, and their client also knows
`{error}` of a 200. `GET /health` answers 200. The server says neither its model nor its revision, and has no place for
a prompt's metadata. Pointwise and groupwise rewards are asked alike.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from dipole.client.adapters.base import ForeignAdapter, ForeignEndpointOptions, RankCall
from dipole.client.connection import BoundedResponse, Deadline, invalid_response
from dipole.protocol.schemas import Many, Ranking, RewardInfo, Score, Version


class FlowFactoryOptions(ForeignEndpointOptions):
    model: Version = Field(
        default="unknown", min_length=1, description="Name of the model, kept with every score, as the server has none."
    )


class _FlowFactoryRewards(BaseModel):
    """The answer of `POST /compute`."""

    rewards: Many[Score]
    error: Any = None


class FlowFactoryAdapter(ForeignAdapter[FlowFactoryOptions]):
    score_path = "/compute"
    recipe = "flow-factory-compute/1"

    def fetch_info(self, deadline: Deadline) -> RewardInfo:
        self.connection.send_request("GET", f"{self.connection.base_url}{self.ready_path}", deadline)
        return self.describe_server("flow-factory-compute", self.options.model)

    def build_request(self, job: RankCall, info: RewardInfo) -> tuple[str, dict[str, Any]]:
        unused = dict.fromkeys(("video", "condition_images", "condition_videos"))
        return self.score_path, {"json": {"prompt": [job.prompt] * len(job), "image": job.base64_pngs(), **unused}}

    def read_answer(self, job: RankCall, status: int, answer: BoundedResponse) -> Ranking:
        found = self.parse_scores(_FlowFactoryRewards, status, answer)
        if found.error:
            raise invalid_response(f"{self.connection.base_url} answered an error: {answer.detail()}")
        return self.rank_floats(job, self.options.model, found.rewards)
