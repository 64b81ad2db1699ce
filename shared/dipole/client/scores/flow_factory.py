"""A reward as the server that Flow-Factory's RemotePointwiseRewardModel and RemoteGroupwiseRewardModel ask.

    GET  /health     200 when the reward can be asked
    POST /compute    {"prompt": [text, …], "image": [base64 of PNG, …]}  ->  {"rewards": [number, …]}

As Flow-Factory's source has it at a0b2bc5 (src/flow_factory/rewards/my_reward_remote.py), whose client was run against
it (LOG.md). It sends no key and knows no null: serve it on loopback, and say what stands for an image without a score.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dipole.client.connection import EndpointError
from dipole.client.scores.client import AsyncClient
from dipole.errors import DipoleError, InvalidInput, NotFound
from dipole.protocol import images
from dipole.protocol.problems import make_problem, problem_of_refusal
from dipole.protocol.validation import first_error
from dipole.web import auth
from dipole.web.asgi import ASGIApp, ProblemResponse, Receive, Scope, Send
from dipole.web.body_limit import BodyLimit

MAX_BODY_BYTES = 256 * 2**20
MAX_ROWS = 1024


class ComputeRequest(BaseModel):
    """What Flow-Factory sends; media that no reward of ours judges must be absent, and unknown fields are its own."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    prompt: list[str] = Field(max_length=MAX_ROWS, description="A prompt for each image.")
    image: list[str] = Field(max_length=MAX_ROWS, description="Base64 of a PNG, one for each prompt.")
    video: None = Field(default=None, description="Not judged.")
    condition_images: None = Field(default=None, description="Not judged.")
    condition_videos: None = Field(default=None, description="Not judged.")


def compute_app(client: AsyncClient, *, missing: float | None = None) -> ASGIApp:
    """The server, as an ASGI app. An image without a score is a 502 with the reason, unless `missing` stands for it."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            auth.refuse_foreign_page(scope)
            answer = await _answer(scope["method"], scope["path"], receive)
        except DipoleError as error:
            document, headers = problem_of_refusal(error)
            if isinstance(error, EndpointError):
                document = make_problem(502, str(error))
            await ProblemResponse(document, headers)(scope, receive, send)
            return
        body = json.dumps(answer, allow_nan=False).encode()
        head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": body})

    async def _answer(method: str, path: str, receive: Receive) -> dict[str, Any]:
        if (method, path) == ("GET", "/health"):
            await client.info()
            return {"status": "ok"}
        if (method, path) != ("POST", "/compute"):
            raise NotFound("there are GET /health and POST /compute, and nothing else")
        asked, pixels = await asyncio.to_thread(_parse, await _read_body(receive))
        scores = await client.score_pairs(asked.prompt, pixels)
        if missing is None and None in scores:
            raise EndpointError(
                f"image[{scores.index(None)}] has no score, and Flow-Factory knows no null: give `missing`",
                code="no_score",
                counts_as_failure=False,
            )
        return {"rewards": [missing if score is None else score for score in scores]}

    return BodyLimit(app, max_bytes=MAX_BODY_BYTES)


async def _read_body(receive: Receive) -> bytes:
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _parse(body: bytes) -> tuple[ComputeRequest, list[images.Pixels]]:
    """Raises InvalidInput that names the first wrong field."""
    try:
        asked = ComputeRequest.model_validate_json(body)
    except ValidationError as error:
        first = first_error(error, "")
        raise InvalidInput(first.sentence, field=first.path or None) from None
    if len(asked.prompt) != len(asked.image):
        raise InvalidInput(f"{len(asked.prompt)} prompts for {len(asked.image)} images", field="image")
    fields = [f"image[{index}]" for index in range(len(asked.image))]
    data = [images.decode_base64(text, field=field) for text, field in zip(asked.image, fields, strict=True)]
    return asked, [
        images.decode_image(each, "image/png", field=field) for each, field in zip(data, fields, strict=True)
    ]
