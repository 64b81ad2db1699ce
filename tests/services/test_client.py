"""`dipole.client` and the shapes of other trainers, over a real reward service: colourfulness, which is 0 for grey.

What those trainers call is as their source has it: trl 1.16.0, verl-omni a1139ba, Flow-Factory a0b2bc5. LOG.md tells
which of them was run.
"""

from __future__ import annotations

import asyncio
import base64
import inspect
import json
import runpy
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from dipole.client import AsyncClient, Client
from dipole.client.connection import EndpointError
from dipole.client.scores.flow_factory import compute_app
from dipole.client.scores.pixels import to_pixels
from dipole.client.scores.trl import trl_reward
from dipole.client.scores.verl_omni import verl_compute_score
from dipole.errors import InvalidInput
from dipole.protocol import images

from ..processes import serving
from .conftest import COLOURFULNESS, serve_command

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
GREY = np.full((16, 16, 3), 128, np.uint8)
GAUDY = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(partial(serve_command, COLOURFULNESS), tmp_path_factory.mktemp("reward") / "log") as (url, _):
        yield url


def as_json(document: Any) -> httpx.Response:
    """A response as from a socket: one that was made of bytes has been read already."""
    body = httpx.ByteStream(json.dumps(document).encode())
    return httpx.Response(200, headers={"content-type": "application/json"}, stream=body)


def fake(
    wants: list[str] | None = None,
    *,
    calibrated: bool = True,
    nulls: bool = False,
    parts: dict[str, float] | None = None,
) -> tuple[Any, list[Any]]:
    """A transport of an endpoint that scores by place, most 2 candidates at once; and the requests that it got."""
    seen: list[Any] = []

    def answer(request: httpx.Request) -> httpx.Response:
        names = {"model": "m", "model_revision": "1", "recipe_version": "1"}
        if request.url.path == "/v1/info":
            said = {"media_types": ["image/png"], "max_candidates": 2, "wants": wants or [], "calibrated": calibrated}
            return as_json({"name": "f", **names, **said})
        asked = json.loads(request.read())
        seen.append(asked)
        error = {"code": "no_face", "message": "there is no face"}
        results = [
            {"id": each["id"], "score": None, "rank": None, "error": error}
            if nulls
            else {
                "id": each["id"],
                "score": float(place),
                "rank": len(asked["candidates"]) - place,
                "sub_scores": parts,
            }
            for place, each in enumerate(asked["candidates"])
        ]
        return as_json({"id": "r", "created": 1, "results": results, **names})

    return httpx.MockTransport(answer), seen


def test_a_reward_is_a_function_of_prompt_and_images(url: str) -> None:
    """Synchronous and asynchronous alike; an image for each prompt keeps its place."""

    async def ask() -> list[Any]:
        async with AsyncClient(url) as client:
            info, ranking = await client.info(), await client.rank("a wall", [GREY, GAUDY])
            return [info.name, [item.rank for item in ranking.results], await client.score("a wall", [GREY, GAUDY])]

    with Client(url) as client:
        scores = client.score("a wall", [GREY, GAUDY])
        assert scores[0] == 0
        assert scores[1] is not None
        assert scores[1] > 0
        assert client.score_pairs(["a", "b", "a"], [GAUDY, GREY, GAUDY]) == [scores[1], 0, scores[1]]
        assert client.score_pairs([], []) == []
        with pytest.raises(InvalidInput, match="2 prompts, 1 images"):
            client.score_pairs(["a", "b"], [GREY])
    assert asyncio.run(ask()) == ["colourfulness", [2, 1], scores]


def test_images_are_taken_as_trainers_have_them() -> None:
    """The same pixels from PIL, numpy and torch, whole numbers or floats, on a side of one or alone."""
    floats = torch.from_numpy(GAUDY).permute(2, 0, 1).float() / 255
    forms = [
        Image.fromarray(GAUDY),
        GAUDY,
        floats,
        floats[None],
        floats.permute(1, 2, 0).numpy(),
        floats.mul(255).byte(),
    ]
    for image in to_pixels(forms):
        assert np.array_equal(image, GAUDY)
    assert to_pixels([floats.bfloat16()])[0].shape == GAUDY.shape
    for wrong, said in (
        (GAUDY[0], "has the shape"),
        (floats * 2 - 1, "from -1 to 1"),
        (floats * torch.nan, "not from 0 to 1"),
        (GAUDY.astype(np.int64), "holds int64"),
    ):
        with pytest.raises(InvalidInput, match=said) as told:
            to_pixels([GAUDY, wrong])
        assert told.value.field == "images[1]"


def test_neighbours_of_a_prompt_are_one_group() -> None:
    """A group that is too large is split where scores compare, and refused where they do not."""
    transport, seen = fake()
    with Client("http://fake", transport=transport) as client:
        assert client.score_pairs(["a", "a", "b"], [GREY] * 3, [{"x": 1}] * 3) == [0, 1, 0]
        assert sorted((each["prompt"], len(each["candidates"])) for each in seen) == [("a", 2), ("b", 1)]
        assert client.score_pairs(["a"] * 3, [GREY] * 3) == [0, 1, 0]
        assert client.score_pairs(["a", "a"], [GREY] * 2, [{"x": 1}, None]) == [0, 0]
    transport, _ = fake(calibrated=False)
    with Client("http://fake", transport=transport) as client, pytest.raises(EndpointError, match="at most 2"):
        client.score_pairs(["a"] * 3, [GREY] * 3)


# ---- TRL ------------------------------------------------------------------------------------------------------------


def call_trl(function: Any, prompts: list[Any], completions: list[Any], **columns: Any) -> Any:
    """As GRPOTrainer._calculate_rewards does, with all that it passes."""
    more = {"trainer_state": SimpleNamespace(global_step=5, max_steps=20), "log_extra": print, "log_metric": print}
    return function(prompts=prompts, completions=completions, completion_ids=[[1]] * len(prompts), **columns, **more)


def test_trl_gets_a_number_for_each_completion(url: str) -> None:
    """Of what its texts are drawn as, or of a column's images; conversations have the text of their last message."""
    pictures = {"grey": GREY, "gaudy": GAUDY}

    def draw(texts: list[str]) -> list[Any]:
        return [pictures[text] for text in texts]

    conversation = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a wall"}]}]
    with Client(url) as client:
        expected = client.score("a wall", [GAUDY, GREY])
        drawn = trl_reward(client, draw=draw, name="colour")
        assert drawn.__name__ == "colour"
        assert call_trl(drawn, ["a wall"] * 2, ["gaudy", "grey"]) == expected
        said = [[{"role": "assistant", "content": text}] for text in ("gaudy", "grey")]
        assert call_trl(drawn, [conversation] * 2, said) == expected
        of_column = trl_reward(client)
        assert call_trl(of_column, ["a wall"] * 2, ["", ""], image=[GAUDY, GREY]) == expected
        with pytest.raises(InvalidInput, match="no column 'image'"):
            call_trl(of_column, ["a"], ["b"])
    with closing(AsyncClient(url)) as several:
        reward = trl_reward(several, draw=draw)
        assert inspect.iscoroutinefunction(reward)
        assert asyncio.run(call_trl(reward, ["a wall"] * 2, ["gaudy", "grey"])) == expected


def test_trl_s_progress_and_metadata_arrive_and_a_null_stays_one() -> None:
    transport, seen = fake(["progress"], nulls=True)
    with Client("http://fake", transport=transport) as client:
        metadata = ['{"tag": "two"}', {"tag": "one"}]
        assert call_trl(trl_reward(client), ["a", "b"], ["", ""], image=[GREY, GREY], metadata=metadata) == [None, None]
    told = {each["prompt"]: (each["metadata"], each["progress"]) for each in seen}
    assert told == {"a": ({"tag": "two"}, 0.25), "b": ({"tag": "one"}, 0.25)}


# ---- verl-omni ------------------------------------------------------------------------------------------------------


def test_verl_omni_gets_a_dict_for_each_image(url: str) -> None:
    """As VisualRewardManager.run_single calls it, which looks whether it is a coroutine function."""
    real = AsyncClient(url)
    compute_score = verl_compute_score(real)
    assert inspect.iscoroutinefunction(compute_score)
    image = torch.from_numpy(GAUDY).permute(2, 0, 1)

    def call(function: Any, image: torch.Tensor) -> dict[str, float]:
        extra = {"num_turns": None, "rollout_reward_scores": {}}
        found: dict[str, float] = asyncio.run(
            function(data_source="x", solution_image=image, ground_truth="a wall", extra_info=extra)
        )
        return found

    with Client(url) as client:
        assert call(compute_score, image)["score"] == client.score("a wall", [GAUDY])[0]
    assert call(compute_score, image[None]) == call(compute_score, image)
    real.close()
    transport, _ = fake(nulls=True)
    with pytest.raises(EndpointError, match="there is no face"):
        call(verl_compute_score(AsyncClient("http://fake", transport=transport)), image)
    assert call(verl_compute_score(AsyncClient("http://fake", transport=transport), missing=-1.0), image) == {
        "score": -1.0
    }
    transport, _ = fake(parts={"score": 9.0, "face": 2.0})
    assert call(verl_compute_score(AsyncClient("http://fake", transport=transport)), image) == {"score": 0, "face": 2.0}
    transport, _ = fake(calibrated=False)
    with pytest.raises(EndpointError, match="only orders images"):
        call(verl_compute_score(AsyncClient("http://fake", transport=transport)), image)


# ---- Flow-Factory ---------------------------------------------------------------------------------------------------


def flow_factory(app: Any, method: str, path: str, **more: Any) -> httpx.Response:
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            return await client.request(method, path, **more)

    return asyncio.run(ask())


def payload(*pictures: images.Pixels, **more: Any) -> dict[str, Any]:
    """As `_build_payload` of its remote client makes it."""
    encoded = [base64.b64encode(images.encode_png(each)).decode() for each in pictures]
    absent = {"video": None, "condition_images": None, "condition_videos": None}
    return {"prompt": ["a wall"] * len(pictures), "image": encoded, **absent, **more}


def test_flow_factory_gets_rewards(url: str) -> None:
    """As RemoteRewardClient asks: /health, then /compute."""
    with closing(AsyncClient(url)) as asked:
        app = compute_app(asked)
        assert flow_factory(app, "GET", "/health").status_code == 200
        assert flow_factory(app, "GET", "/other").status_code == 404
        answer = flow_factory(app, "POST", "/compute", json=payload(GREY, GAUDY))
    with Client(url) as client:
        assert answer.json() == {"rewards": client.score("a wall", [GREY, GAUDY])}


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        (payload(GREY, prompt=["a", "b"]), 422, "2 prompts for 1 images"),
        (payload(GREY, image=["no base64!"]), 422, "image[0]"),
        (payload(GREY, video=[["x"]]), 422, "video"),
        ({"prompt": ["a"]}, 422, "image"),
        ("[" * 100_000, 422, "JSON"),
    ],
)
def test_flow_factory_s_wrong_request_is_refused_by_field(sent: Any, status: int, said: str) -> None:
    """And a null, which it does not know, is an error with its reason, unless something stands for it."""
    transport, _ = fake()
    body = {"content": sent} if isinstance(sent, str) else {"json": sent}
    answer = flow_factory(compute_app(AsyncClient("http://fake", transport=transport)), "POST", "/compute", **body)
    assert answer.status_code == status
    assert said in answer.text


def test_flow_factory_knows_no_null() -> None:
    transport, _ = fake(nulls=True)
    client = AsyncClient("http://fake", transport=transport)
    answer = flow_factory(compute_app(client), "POST", "/compute", json=payload(GREY))
    assert answer.status_code == 502
    assert "image[0] has no score" in answer.json()["detail"]
    answer = flow_factory(compute_app(client, missing=-3.0), "POST", "/compute", json=payload(GREY))
    assert answer.json() == {"rewards": [-3.0]}


def test_the_examples_are_what_those_trainers_ask(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flow-Factory's as a process, as its first lines say; verl-omni's as a file that is imported by its path."""

    def command(port: int) -> list[str]:
        return [sys.executable, str(EXAMPLES / "flow_factory_server.py"), url, str(port)]

    with Client(url) as client:
        expected = client.score("a wall", [GREY, GAUDY])
    with serving(command, tmp_path / "log", ready="/health") as (server, _):
        answer = httpx.post(f"{server}/compute", json=payload(GREY, GAUDY), trust_env=False)
        assert answer.json() == {"rewards": expected}
    monkeypatch.setenv("REWARD_URL", url)
    found = runpy.run_path(str(EXAMPLES / "verl_omni_reward.py"))
    image = torch.from_numpy(GAUDY).permute(2, 0, 1)
    scored = asyncio.run(
        found["compute_score"](data_source="x", solution_image=image, ground_truth="a wall", extra_info={})
    )
    found["client"].close()
    assert scored["score"] == expected[1]


def test_a_page_in_a_browser_may_not_ask() -> None:
    transport, seen = fake()
    app = compute_app(AsyncClient("http://fake", transport=transport))
    answer = flow_factory(app, "POST", "/compute", json=payload(GREY), headers={"origin": "http://evil.example"})
    assert (answer.status_code, seen) == (403, [])


def test_the_client_s_import_loads_neither_torch_nor_a_web_framework(tmp_path: Path) -> None:
    """Trainers import it in processes of theirs."""
    heavy = ("torch", "celery", "fastapi", "sqlalchemy")
    code = f"import sys; from dipole.client import Client; print([each for each in {heavy} if each in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "[]"
