"""Candidates that lie in this machine's memory, of which a caller names the reference alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import JsonValue

from dipole.broker import shared_memory
from dipole.broker.references import make_reference, parse_reference
from dipole.broker.shared_memory import SharedMemory
from dipole.protocol import images
from dipole_rewards.reward import Golden, Pixels, Reward, Scores

pytestmark = pytest.mark.anyio
GROUP = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 3), dtype=np.uint8)
REFERENCE = make_reference(GROUP)


class Blackens(Reward):
    """Scores the first pixel's red and, as a reward may, writes into the images it was given."""

    name = "blackens"

    def score(self, *, prompt: str, images: Sequence[Pixels], metadata: Mapping[str, JsonValue] | None) -> Scores:
        found = [float(image[0, 0, 0]) for image in images]
        for image in images:
            image[:] = 0
        return Scores(found)

    def golden(self) -> Golden:
        return Golden(prompt="", image=np.full((1, 1, 3), 7, np.uint8), score=7.0)


BLACKENS = f"{__name__}:Blackens"


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[SharedMemory]:
    """Of a trainer on this machine, which keeps the group there."""
    memory = SharedMemory(tmp_path)
    memory.put(parse_reference(REFERENCE), GROUP)
    yield memory
    memory.close()


def asked(count: int = 3, kind: str = images.NPY, **more: Any) -> dict[str, Any]:
    listed = [{"id": f"c{k}", "image": {"media_type": kind}} for k in range(count)]
    return {"prompt": "p", "candidates": listed, "stored": REFERENCE, **more}


def parts(group: NDArray[np.uint8]) -> dict[str, Any]:
    """The same request with the candidates in it, as httpx's arguments."""
    request = json.dumps({name: value for name, value in asked().items() if name != "stored"})
    files = {f"c{k}": (f"c{k}.npy", images.encode_npy(image), images.NPY) for k, image in enumerate(group)}
    return {"data": {"request": request}, "files": files}


async def test_what_is_stored_is_ranked_as_if_it_were_sent(serve: Any, memory: SharedMemory, tmp_path: Path) -> None:
    """The same ranking, word for word with the same key, whichever came first; and nobody's images are written to."""
    async with serve(reward=BLACKENS, candidate_dir=tmp_path) as client:
        assert (await client.get("/v1/info")).json()["memory"] == memory.id
        for key, order in {"one": ("stored", "sent"), "two": ("sent", "stored")}.items():
            answers = []
            for how in order:
                body: dict[str, Any] = {"json": asked()} if how == "stored" else parts(GROUP)
                answers.append(await client.post("/v1/rank", headers={"Idempotency-Key": key}, **body))
            assert [answer.status_code for answer in answers] == [200, 200], answers[-1].text
            assert answers[0].json() == answers[1].json()
            assert [item["score"] for item in answers[0].json()["results"]] == GROUP[:, 0, 0, 0].tolist()
        other = await client.post("/v1/rank", headers={"Idempotency-Key": "one"}, **parts(GROUP + 1))
        assert other.status_code == 422
    found = memory.get(parse_reference(REFERENCE))
    assert found is not None
    assert np.array_equal(found, GROUP)


async def test_a_service_makes_no_folder_and_finds_the_one_that_is_made_later(serve: Any, tmp_path: Path) -> None:
    """Where no trainer has run, as in a container of its own, it says nothing that an older trainer would not know."""
    async with serve(reward=BLACKENS, candidate_dir=tmp_path) as client:
        assert "memory" not in (await client.get("/v1/info")).json()
        assert list(tmp_path.iterdir()) == []
        memory = SharedMemory(tmp_path)
        memory.put(parse_reference(REFERENCE), GROUP)
        assert (await client.get("/v1/info")).json()["memory"] == memory.id
        assert (await client.post("/v1/rank", json=asked())).status_code == 200
        memory.close()


async def test_what_cannot_be_mapped_is_to_be_sent(
    serve: Any, memory: SharedMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system has no memory or no descriptor left: 415, and nobody's fault."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    async with serve(reward=BLACKENS, candidate_dir=tmp_path) as client:
        monkeypatch.setattr(shared_memory.mmap, "mmap", refuse)
        assert (await client.post("/v1/rank", json=asked())).status_code == 415


@pytest.mark.parametrize("where", ["nowhere", "another folder", "unread"])
async def test_what_does_not_lie_there_is_to_be_sent(
    serve: Any, memory: SharedMemory, tmp_path: Path, where: str
) -> None:
    """415, as for an encoding that is not taken. A service that is told to use Redis, or has no folder, offers none."""
    settings: dict[str, Any] = {"candidate_dir": tmp_path}
    if where == "nowhere":
        memory.delete(parse_reference(REFERENCE))
    elif where == "another folder":
        settings["candidate_dir"] = tmp_path / "other"
        settings["candidate_dir"].mkdir()
    else:
        settings["candidate_store"] = "redis"
    async with serve(reward=BLACKENS, **settings) as client:
        assert (await client.get("/v1/info")).json().get("memory") != (memory.id if where != "nowhere" else None)
        answer = await client.post("/v1/rank", json=asked())
        assert answer.status_code == 415
        assert answer.json()["errors"][0]["field"] == "stored"
        assert "send them" in answer.json()["detail"]
        assert (await client.post("/v1/rank", **parts(GROUP))).status_code == 200


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"count": 2}, "stored"),
        ({"kind": "image/png"}, "candidates[0].image.media_type"),
        ({"stored": "sha256:../../id:3x4x6"}, "stored"),
        ({"stored": f"sha256:{'0' * 64}:3x99999x99999"}, "stored"),
        ({"stored": REFERENCE + "x" * 200}, "stored"),
    ],
)
async def test_a_request_that_does_not_fit_what_is_stored_is_refused(
    serve: Any, memory: SharedMemory, tmp_path: Path, wrong: dict[str, Any], field: str
) -> None:
    """By name, and before any byte of it is looked at."""
    async with serve(reward=BLACKENS, candidate_dir=tmp_path) as client:
        answer = await client.post("/v1/rank", json=asked(**wrong))
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field


async def test_bounds_hold_for_what_is_stored_too(serve: Any, memory: SharedMemory, tmp_path: Path) -> None:
    """Pixels of an image, of all together, and candidates; and bytes beside a reference are one too many."""
    for bound in ({"reward_max_pixels": 23}, {"reward_max_total_pixels": 71}, {"reward_max_candidates": 2}):
        async with serve(reward=BLACKENS, candidate_dir=tmp_path, **bound) as client:
            assert (await client.post("/v1/rank", json=asked())).status_code == 413
    async with serve(reward=BLACKENS, candidate_dir=tmp_path) as client:
        sent = asked()
        sent["candidates"][1]["image"]["data"] = "AAAA"
        twice = await client.post("/v1/rank", json=sent)
        in_parts = await client.post("/v1/rank", data={"request": json.dumps(asked())}, files=parts(GROUP)["files"])
        latents = await client.post("/v1/rank", json=asked(stored=f"sha256:{'0' * 64}:3x4x8x8"))
    assert twice.json()["errors"][0]["field"] == "candidates[1].image.data"
    assert in_parts.json()["errors"][0]["field"] == "stored"
    assert latents.json()["errors"][0]["field"] == "candidates[0].image.media_type"
