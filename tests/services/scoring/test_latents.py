"""Candidates that come as latents: the reward's decoder gives the trainer's images, and its bounds hold before that."""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from pydantic import JsonValue
from safetensors.torch import load_file, save_file

from dipole import conformance
from dipole.broker.references import make_reference, parse_reference
from dipole.broker.shared_memory import SharedMemory
from dipole.client.rank_client import LatentsNotTaken, RankClient
from dipole.errors import ConfigurationError
from dipole.protocol import images
from dipole.protocol.latents import LATENTS, encode_latents
from dipole_rewards.reward import Golden, Pixels, Reward, Scores
from dipole_rewards.scoring.vae_decoder import VaeDecoder
from dipole_trainer.generators.one_step import TINY_TURBO, OneStepGenerator
from dipole_trainer.spec import GeneratorSpec, Precision

from ..conftest import Process, Serve

pytestmark = pytest.mark.anyio
HERE = f"{__name__}:SeenKinds"
COLOURFULNESS = "dipole_rewards.rewards.colourfulness:Colourfulness"
Drawn = tuple[OneStepGenerator, torch.Tensor]
METADATA = {"tag": "colors", "include": [{"class": "circle", "count": 1, "color": "red"}]}


class SeenKinds(Reward):
    """Scores what it was given by its size, and reads latents as they are."""

    name = "seen-kinds"
    reads_latents = True

    def score(self, *, prompt: str, images: Sequence[Pixels], metadata: Mapping[str, JsonValue] | None) -> Scores:
        return Scores([float(image.shape[0]) if image.dtype == np.float16 else 100.0 for image in images])

    def golden(self) -> Golden:
        return Golden(prompt="", image=np.zeros((2, 2, 3), np.uint8), score=100.0)


def draw(precision: Precision = "fp32", count: int = 6) -> tuple[OneStepGenerator, torch.Tensor]:
    generator = OneStepGenerator.load(TINY_TURBO, GeneratorSpec(precision=precision))
    with torch.no_grad():
        return generator, generator(generator.draw_noise(range(count)), "a red circle")


@pytest.fixture(scope="module")
def drawn() -> tuple[OneStepGenerator, torch.Tensor]:
    return draw()


def request(parts: Sequence[Any], **metadata: Any) -> dict[str, Any]:
    coded = [
        {"media_type": LATENTS, "data": images.base64.b64encode(part).decode()} if isinstance(part, bytes) else part
        for part in parts
    ]
    listed = [{"id": f"c{index}", "image": part} for index, part in enumerate(coded)]
    return {"prompt": "a red circle", "candidates": listed, "metadata": metadata or METADATA}


def saved(array: Any, **more: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **more)
    return file.getvalue()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_reward_decodes_what_the_trainer_would(precision: Precision) -> None:
    """Image by image to one level, by a VAE that both know by the same fingerprint; another precision has another."""
    generator, x = draw(precision)
    decoder = VaeDecoder.load(TINY_TURBO, precision, "cpu")
    latents, _ = generator.pack_latents(x)
    decoded, flawed = decoder.decode(list(latents))
    expected, _ = generator.decode_candidates(x)
    levels = np.abs(np.stack(decoded).astype(int) - expected)
    assert flawed == []
    assert levels.max() <= 1
    assert (levels > 0).mean() < (0.001 if precision == "bf16" else 0.01)
    assert decoder.space.vae == generator.vae_fingerprint
    assert decoder.space.vae != VaeDecoder.load(TINY_TURBO, "fp32" if precision == "bf16" else "bf16", "cpu").space.vae


def test_a_fingerprint_tells_weights_and_configurations_apart(tmp_path: Path) -> None:
    """One weight of the decoder, or the scaling factor; the encoder, of which no image is made, does not count."""
    vae = TINY_TURBO / "vae"
    prints = [VaeDecoder.load(vae, "fp32", "cpu").space.vae]
    for changed in ("decoder.conv_in.bias", "encoder.conv_in.bias", ""):
        folder = tmp_path / (changed or "config")
        shutil.copytree(vae, folder)
        if changed:
            path = folder / "diffusion_pytorch_model.safetensors"
            tensors = load_file(path)
            tensors[changed] = tensors[changed] + 1e-3
            save_file(tensors, path)
        else:
            config = folder / "config.json"
            config.write_text(config.read_text().replace('"scaling_factor": 0', '"scaling_factor": 1'))
        prints.append(VaeDecoder.load(folder, "fp32", "cpu").space.vae)
    own, weight, encoder, scaling = prints
    assert own == encoder
    assert len({own, weight, scaling}) == 3


async def test_latents_are_ranked_as_their_images_are(
    serve: Serve, drawn: tuple[OneStepGenerator, torch.Tensor]
) -> None:
    """In JSON; /v1/info says whose they are; one that is not finite is null with its reason and without parts; those of
    a VAE that was there before a restart are refused.
    """
    generator, x = drawn
    latents, _ = generator.pack_latents(x)
    pixels, _ = generator.decode_candidates(x)
    async with serve(reward=COLOURFULNESS, reward_vae=TINY_TURBO) as client:
        info = (await client.get("/v1/info")).json()
        assert info["latents"] == {"vae": generator.vae_fingerprint, "channels": 4, "scale": 8}
        assert LATENTS in info["media_types"]
        by_image = (await client.post("/v1/rank", json=request([png(each) for each in pixels]))).json()
        damaged = latents.copy()
        damaged[1] = np.nan
        by_latents = (await client.post("/v1/rank", json=request([encode_latents(each) for each in damaged]))).json()
        scores = [[item["score"] for item in answer["results"]] for answer in (by_image, by_latents)]
        assert len(set(scores[0])) > 1
        assert scores[1] == pytest.approx([None if k == 1 else score for k, score in enumerate(scores[0])], abs=0.02)
        assert by_latents["results"][1]["error"]["code"] == "not_finite"
        assert not by_latents["results"][1].get("sub_scores")
        alone = (await client.post("/v1/rank", json=request([encode_latents(damaged[1])]))).json()
        assert [item["score"] for item in alone["results"]] == [None]
        for vae, status in ((generator.vae_fingerprint, 200), ("0" * 64, 415)):
            named = {**request([encode_latents(each) for each in latents]), "vae": vae}
            assert (await client.post("/v1/rank", json=named)).status_code == status


async def test_latents_are_read_from_memory_too(
    serve: Serve, drawn: tuple[OneStepGenerator, torch.Tensor], tmp_path: Path
) -> None:
    """The scores of the same latents sent; those of another VAE, or of a service that takes none, are 415."""
    latents, _ = drawn[0].pack_latents(drawn[1])
    reference, memory = make_reference(latents), SharedMemory(tmp_path)
    memory.put(parse_reference(reference), latents)
    sent = request([encode_latents(each) for each in latents])
    stored = {**request([{"media_type": LATENTS}] * len(latents)), "stored": reference}
    async with serve(reward=COLOURFULNESS, reward_vae=TINY_TURBO, candidate_dir=tmp_path) as client:
        answers = [await client.post("/v1/rank", json=each) for each in (sent, stored)]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert answers[0].json()["results"] == answers[1].json()["results"]
        assert (await client.post("/v1/rank", json={**stored, "vae": "0" * 64})).status_code == 415
    async with serve(reward=COLOURFULNESS, candidate_dir=tmp_path) as client:
        refused = await client.post("/v1/rank", json=stored)
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (415, "stored")
    memory.close()


def png(pixels: Any) -> dict[str, str]:
    return {"media_type": "image/png", "data": images.base64.b64encode(images.encode_png(pixels)).decode()}


async def test_a_reward_may_read_latents_as_they_are(
    serve: Serve, drawn: tuple[OneStepGenerator, torch.Tensor]
) -> None:
    """With `reads_latents` nothing is decoded, and images come all the same."""
    latents, _ = drawn[0].pack_latents(drawn[1])
    async with serve(reward=HERE, reward_vae=TINY_TURBO / "vae") as client:
        for parts, score in (
            ([encode_latents(each) for each in latents], 4.0),
            ([png(np.zeros((8, 8, 3), "u1"))], 100.0),
        ):
            answer = (await client.post("/v1/rank", json=request(parts))).json()
            assert {item["score"] for item in answer["results"]} == {score}


GOOD = np.zeros((4, 8, 8), np.float16)
WRONG = {
    "other channels": (saved(np.zeros((3, 8, 8), np.float16)), 422, ""),
    "float32": (saved(GOOD.astype(np.float32)), 422, ""),
    "big-endian": (saved(GOOD.astype(">f2")), 422, ""),
    "Fortran's order": (saved(np.asfortranarray(GOOD)), 422, ""),
    "a dimension more": (saved(GOOD[None]), 422, ""),
    "empty": (saved(GOOD[:, :0]), 422, ""),
    "short": (encode_latents(GOOD)[:-2], 422, ""),
    "a pickle": (saved(np.array([{}], object), allow_pickle=True), 422, ""),
    "too many pixels": (encode_latents(np.zeros((4, 9, 8), np.float16)), 413, ""),
    "an image beside": (png(np.zeros((8, 8, 3), np.uint8)), 422, ".media_type"),
}


@pytest.mark.parametrize(("wrong", "status", "field"), WRONG.values(), ids=WRONG.keys())
async def test_wrong_latents_are_refused_by_name(serve: Serve, wrong: Any, status: int, field: str) -> None:
    """Before anything is decoded."""
    async with serve(reward=HERE, reward_vae=TINY_TURBO, reward_max_pixels=64**2) as client:
        answer = await client.post("/v1/rank", json=request([encode_latents(GOOD), wrong]))
        assert answer.status_code == status
        assert answer.json()["errors"][0]["field"] == f"candidates[1].image{field}"


async def test_their_pixels_count_together_and_without_a_vae_there_are_none(serve: Serve) -> None:
    async with serve(reward=HERE, reward_vae=TINY_TURBO, reward_max_total_pixels=64**2) as client:
        answer = await client.post("/v1/rank", json=request([encode_latents(GOOD)] * 2))
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (413, "candidates")
    async with serve(reward=HERE) as client:
        answer = await client.post("/v1/rank", json=request([encode_latents(GOOD)]))
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (415, "candidates[0].image.media_type")
        assert (await client.get("/v1/info")).json().get("latents") is None


def test_a_folder_without_a_vae_is_said_by_name(tmp_path: Path) -> None:
    for text in (None, "[]", '{"_class_name": "UNet2DModel"}', '{"_class_name": "AutoencoderKL"}'):
        if text is not None:
            (tmp_path / "config.json").write_text(text)
        with pytest.raises(ConfigurationError, match=r"^DIPOLE_REWARD_VAE=.* holds no VAE in diffusers' format"):
            VaeDecoder.load(tmp_path, "fp32", "cpu")


def test_the_client_sends_latents_to_who_takes_them(
    serve_process: Process, drawn: tuple[OneStepGenerator, torch.Tensor]
) -> None:
    """Over a socket, as parts: a tenth of the bytes. Of another VAE it says so before anything is sent."""
    generator, x = drawn
    latents, _ = generator.pack_latents(x)
    pixels, _ = generator.decode_candidates(x)
    with serve_process("shapes", VAE=str(TINY_TURBO)) as url, RankClient(url) as client:
        scores = [
            [item.score for item in ranking.results]
            for ranking in (
                client.rank("a red circle", list(pixels), METADATA),
                client.rank("a red circle", list(latents), METADATA, vae=generator.vae_fingerprint),
            )
        ]
        assert scores[0] == pytest.approx(scores[1], abs=0.02)
        with pytest.raises(LatentsNotTaken) as refused:
            client.rank("a red circle", list(latents), METADATA, vae=f"sha256:{'0' * 64}")
        assert refused.value.is_mismatch
        assert httpx.get(f"{url}/v1/info").json()["latents"]["channels"] == 4
        checks = ("info", "ranks_every_media_type", "ranks_latents", "refuses_wrong_latents")
        assert {each.outcome for each in conformance.run_checks(url, only=checks)} == {"passed"}
