"""A reward as a server of its own, on FastAPI and the light package `dipole`: sharp images first, or soft ones.

Install dipole, fastapi and uvicorn, then start and check it:

    uvicorn fastapi_reward:app --port 8405
    dipole rewards check http://127.0.0.1:8405
"""

import time
import uuid

import numpy as np
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from dipole import images, web
from dipole.errors import DipoleError, TooLarge
from dipole.schemas import RankedItem, Ranking, RankRequest, RewardInfo

VERSIONS = {"model": "steps-between-pixels", "model_revision": "1", "recipe_version": "1"}
INFO = RewardInfo(
    name="sharpness",
    **VERSIONS,
    media_types=list(images.MEDIA_TYPES),
    max_candidates=32,
    max_pixels=2**22,
    multipart=False,
)

app = FastAPI()
app.add_middleware(web.BodyLimit, max_bytes=64 * 2**20)  # counted before anything is parsed
for kind in (DipoleError, RequestValidationError, HTTPException):
    app.add_exception_handler(kind, web.answer)  # 4xx as problem+json that names the field


@app.get("/livez")
@app.get("/readyz")
def healthy() -> str:
    return "ok"


@app.get("/v1/info")
def info() -> RewardInfo:
    return INFO


@app.post("/v1/rank")
def rank(request: RankRequest) -> Ranking:  # not async: it runs in a thread, and /livez answers meanwhile
    if len(request.candidates) > INFO.max_candidates:
        raise TooLarge(f"candidates: at most {INFO.max_candidates} are accepted", field="candidates")
    sign = -1 if "soft" in request.prompt.lower() else 1
    scores = [sign * sharpness(pixels) for pixels in decoded(request)]
    ranks = [1 + sum(other > score for other in scores) for score in scores]  # 1 is best, ties share
    ids = [candidate.id for candidate in request.candidates]
    results = [RankedItem(id=i, score=s, rank=r) for i, s, r in zip(ids, scores, ranks, strict=True)]
    return Ranking(id=uuid.uuid4().hex, created=int(time.time()), **VERSIONS, results=results)


def decoded(request: RankRequest) -> list[images.Pixels]:
    """Uint8 RGB (H, W, 3): measured before it is decoded, refused by name when it is damaged or too large."""
    pixels = []
    for index, candidate in enumerate(request.candidates):
        field, image = f"candidates[{index}].image", candidate.image
        data = images.from_base64(image.data or "", field=field)
        pixels.append(images.decode(data, image.media_type, max_pixels=INFO.max_pixels, field=field))
    return pixels


def sharpness(pixels: images.Pixels) -> float:
    """The mean step between neighbouring pixels."""
    grey = pixels.mean(axis=2) / 255
    return float(np.abs(np.diff(grey, axis=0)).sum() + np.abs(np.diff(grey, axis=1)).sum()) / grey.size
