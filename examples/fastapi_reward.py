"""A reward as a server of its own, on FastAPI and the light package `dipole`: sharp images first, or soft ones.

python fastapi_reward.py 8405, then dipole rewards check http://127.0.0.1:8405
"""

import sys

import numpy as np
from fastapi import FastAPI

from dipole.protocol import images
from dipole.protocol.schemas import Ranking, RankRequest, RewardInfo
from dipole.web import http_server, reward_server

INFO = RewardInfo(
    name="sharpness", model="steps-between-pixels", model_revision="1", recipe_version="1",
    media_types=list(images.MEDIA_TYPES), max_candidates=32, max_pixels=2**22, multipart=False,
)  # fmt: skip

app = FastAPI()
reward_server.prepare_app(app, INFO)


@app.post("/v1/rank")
def rank(request: RankRequest) -> Ranking:  # not async: it runs in a thread, and /livez answers meanwhile
    sign = -1 if "soft" in request.prompt.lower() else 1
    return reward_server.make_ranking(
        request, INFO, [sign * sharpness(pixels) for pixels in reward_server.decode_candidates(request, INFO)]
    )


def sharpness(pixels: images.Pixels) -> float:
    """The mean step between neighbouring pixels."""
    grey = pixels.mean(axis=2) / 255
    return float(np.abs(np.diff(grey, axis=0)).sum() + np.abs(np.diff(grey, axis=1)).sum()) / grey.size


if __name__ == "__main__":  # uvicorn's own command would bound neither heads nor connections
    port = int(sys.argv[1])
    http_server.create_server(app, host="127.0.0.1", port=port, timeout_graceful_shutdown=5).run()
