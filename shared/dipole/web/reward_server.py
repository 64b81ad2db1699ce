"""For a reward server of one's own on FastAPI: all that is around the scoring. examples/fastapi_reward.py is one.

    app = FastAPI()
    reward_server.prepare_app(app, INFO)

    @app.post("/v1/rank")
    def rank(request: RankRequest) -> Ranking:
        images = reward_server.decode_candidates(request, INFO)
        return reward_server.make_ranking(request, INFO, [score(pixels) for pixels in images])

    http_server.create_server(app, host="127.0.0.1", port=8405, timeout_graceful_shutdown=5).run()

What it leaves out (idempotency, 202, metrics, multipart, a queue) the services of `dipole rewards serve` have.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from dipole.errors import DipoleError, TooLarge
from dipole.protocol import images
from dipole.protocol.schemas import ItemError, RankedItem, Ranking, RankRequest, RewardInfo, rank_scores
from dipole.web import asgi, auth, body_limit

DEFAULT_BODY_BYTES = 64 * 2**20
NO_SCORE = ItemError(code="no_score", message="the reward gave this image no score")


def prepare_app(
    app: Any, info: RewardInfo, *, key: str | None = None, max_body_bytes: int = DEFAULT_BODY_BYTES
) -> None:
    """Give a FastAPI app its health and info routes, refusals that name the field, bounded bodies, and a bearer key."""
    app.add_api_route("/livez", lambda: "alive")
    app.add_api_route("/readyz", lambda: "ready")
    # a trainer of an older version refuses a field that it does not know, also an empty one
    app.add_api_route("/v1/info", lambda: info, response_model=RewardInfo, response_model_exclude_none=True)
    app.router.redirect_slashes = False  # the protocol knows no redirects
    # the framework's own refusals too
    for kind in [*app.exception_handlers, DipoleError]:
        app.add_exception_handler(kind, asgi.answer_problem)
    app.add_middleware(body_limit.BodyLimit, max_bytes=max_body_bytes)
    app.add_middleware(auth.KeyGuard, keys=[key] if key else [])


def decode_candidates(request: RankRequest, info: RewardInfo) -> list[images.Pixels]:
    """The images, uint8 RGB (H, W, 3): measured before one is decoded.

    Raises InvalidInput or TooLarge that names the candidate.
    """
    if len(request.candidates) > info.max_candidates:
        raise TooLarge(f"candidates: at most {info.max_candidates} are accepted", field="candidates")
    pixels = []
    for index, candidate in enumerate(request.candidates):
        field, image = f"candidates[{index}].image", candidate.image
        data = images.decode_base64(image.data or "", field=field)
        pixels.append(images.decode_image(data, image.media_type, max_pixels=info.max_pixels, field=field))
    return pixels


def make_ranking(request: RankRequest, info: RewardInfo, scores: Sequence[float | None]) -> Ranking:
    """The answer: a score for each candidate, in order, higher is better; None where there is none."""
    items = [
        RankedItem(
            id=candidate.id, score=None if score is None else float(score), rank=rank, error=None if rank else NO_SCORE
        )
        for candidate, score, rank in zip(request.candidates, scores, rank_scores(scores), strict=True)
    ]
    return Ranking(
        id=f"rank_{uuid.uuid4().hex}",
        created=int(time.time()),
        model=info.model,
        model_revision=info.model_revision,
        recipe_version=info.recipe_version,
        results=items,
    )
