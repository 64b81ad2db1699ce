"""A sampler's models and its health: what is kept, what is loaded again, from where; when it says that it lives."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import redis
import structlog
import torch
from safetensors.torch import load_file, save_file

from dipole.broker import image_requests
from dipole.broker.connection import connect_redis
from dipole.broker.image_requests import ImageRequestStore, image_coordination
from dipole.broker.messages import CheckpointRef
from dipole.broker.process_health import ProcessUnhealthy
from dipole.errors import InvalidInput, Overloaded
from dipole.protocol import images
from dipole.settings import SamplerSettings
from dipole_trainer import generators
from dipole_trainer.checkpoints import resume_state
from dipole_trainer.generators import tiny_pipelines
from dipole_trainer.sampler import process
from dipole_trainer.sampler.model_cache import ModelCache
from dipole_trainer.spec import GeneratorSpec

PROMPT = "a photo of a red square"
TINY = {"model": "tiny-turbo", "lora": {"rank": 4, "alpha": 4.0}}
PLACE: CheckpointRef = {"id": "ftckpt-1", "job": "ftjob-1", "path": "checkpoint-1"}


def models(folder: Path, **more: Any) -> ModelCache:
    more = {"artifacts_url": f"{folder}/artifacts", "models_dir": folder / "models", **more}
    return ModelCache(SamplerSettings(home=folder, **more))


def save(workdir: Path, model: dict[str, Any], models_dir: Path = Path("none")) -> np.ndarray[Any, Any]:
    """Write checkpoint-1 of a model with weights of its own; the image that it draws from seed 5."""
    generator = generators.build_generator(GeneratorSpec.model_validate(model), models_dir=models_dir)
    state = {"model": model["model"], "base": resume_state.fingerprint_base(generator)}
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=draws)
        drawn = generator.decode_images(generator(generator.draw_noise([5]), PROMPT))[0]
    workdir.mkdir(parents=True)
    resume_state.save_checkpoint(workdir, 1, generator, torch.optim.AdamW(generator.parameters()), state)
    return drawn


def draw(drawing: ModelCache, model: Mapping[str, Any], place: CheckpointRef | None = None, seed: int = 5) -> Any:
    (image,) = drawing.draw_images(model, place, PROMPT, [seed])
    return images.decode_image(image, "image/png")


def loaded(logs: list[Any]) -> list[str]:
    return [each["model"] for each in logs if each["event"] == "model_loading"]


def test_the_last_few_models_are_kept(tmp_path: Path) -> None:
    """With room for two, the third ends the one that was used least lately; a request that fails ends none."""
    for name in ("a", "b", "c"):
        tiny_pipelines.write_pipeline(tmp_path / "models" / name, "sd", seed=ord(name))
    drawing = models(tmp_path)
    with structlog.testing.capture_logs() as logs:
        first = draw(drawing, {"model": "a"})
        for name in ("b", "a", "c", "a"):
            last = draw(drawing, {"model": name})
        assert loaded(logs) == ["a", "b", "c"]
        assert (first == last).all()
        with pytest.raises(InvalidInput, match="not on this machine"):
            draw(drawing, {"model": "sd-turbo"})
        draw(drawing, {"model": "c"})
        draw(drawing, {"model": "b"})
    assert loaded(logs) == ["a", "b", "c", "b"]


@pytest.mark.parametrize("tune", ["lora", "full"])
@pytest.mark.parametrize("store", ["folder", "object store"])
def test_a_checkpoint_draws_what_it_drew_when_it_was_made(tmp_path: Path, tune: str, store: str) -> None:
    """A LoRA's and a full one's, from a plain folder and from an object store; the base beside it is untouched."""
    tiny_pipelines.write_pipeline(tmp_path / "models/tiny-sd", "sd")
    model = {"model": "tiny-sd", "tune": tune, "lora": TINY["lora"]}
    expected = save(tmp_path / "artifacts/jobs/ftjob-1", model, tmp_path / "models")
    more: dict[str, Any] = {}
    if store == "object store":
        more = {"artifacts_url": f"memory://test-sampler-{tune}"}
        fsspec.filesystem("memory").put(f"{tmp_path}/artifacts/jobs", f"/test-sampler-{tune}/jobs", recursive=True)
        shutil.rmtree(tmp_path / "artifacts")
    drawing = models(tmp_path, **more)
    base = draw(drawing, model)
    assert (draw(drawing, model, PLACE) == expected).all()
    assert (draw(drawing, model) == base).all()
    assert (base != expected).any()


def test_a_checkpoint_of_other_base_weights_is_refused(tmp_path: Path) -> None:
    """Its base has changed since: the images would not be its own."""
    tiny_pipelines.write_pipeline(tmp_path / "models/tiny-sd", "sd")
    save(tmp_path / "artifacts/jobs/ftjob-1", {"model": "tiny-sd"}, tmp_path / "models")
    shutil.rmtree(tmp_path / "models/tiny-sd")
    tiny_pipelines.write_pipeline(tmp_path / "models/tiny-sd", "sd", seed=1)
    with pytest.raises(InvalidInput, match="other weights"):
        draw(models(tmp_path), {"model": "tiny-sd"}, PLACE)


def test_a_pruned_checkpoint_leaves_no_half_loaded_model(tmp_path: Path) -> None:
    """It is refused by name, and the base draws as before."""
    drawing = models(tmp_path)
    before = draw(drawing, TINY)
    with pytest.raises(InvalidInput, match="checkpoint-1 of ftjob-1 is no longer there"):
        draw(drawing, TINY, PLACE)
    assert (draw(drawing, TINY) == before).all()


def test_without_memory_everything_is_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory is told as such, and the next request finds as much room as there is."""
    drawing = models(tmp_path)
    draw(drawing, TINY)

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(generators, "build_generator", full)
        with pytest.raises(Overloaded, match="memory"):
            draw(drawing, {"model": "tiny-turbo", "resolution": 96})
    with structlog.testing.capture_logs() as logs:
        draw(drawing, TINY)
    assert loaded(logs) == ["tiny-turbo"]


def test_images_that_are_not_finite_are_refused_with_the_vae(tmp_path: Path) -> None:
    """No black picture is sent for one that there is not."""
    folder = tiny_pipelines.write_pipeline(tmp_path / "models/tiny-sd", "sd")
    weights = load_file(folder / "vae/diffusion_pytorch_model.safetensors")
    weights["decoder.conv_out.bias"].fill_(torch.inf)
    save_file(weights, folder / "vae/diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidInput, match=r"precision fp32, the VAE AutoencoderKL in float32") as caught:
        draw(models(tmp_path), {"model": "tiny-sd"})
    assert caught.value.field == "model"


def test_what_a_model_did_not_read_is_known_while_it_is_loaded(tmp_path: Path) -> None:
    drawing = models(tmp_path)
    draw(drawing, TINY)
    assert drawing.describe_unread(TINY, PROMPT) is None
    assert "never reads 'circle'" in str(drawing.describe_unread(TINY, "red " * 14 + "circle"))


# ---- the process --------------------------------------------------------------------------------------------------


class Hangs:
    """Models that draw nothing until they are let."""

    def __init__(self) -> None:
        self.let, self.asked = threading.Event(), 0

    def draw_images(
        self, model: Mapping[str, Any], checkpoint: CheckpointRef | None, prompt: str, seeds: list[int]
    ) -> Iterator[bytes]:
        self.asked += 1
        self.let.wait(30)
        yield from (b"image" for _ in seeds)

    def describe_unread(self, model: Mapping[str, Any], prompt: str) -> str | None:
        return None


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def order(client: redis.Redis, name: str, seconds: float = 30) -> dict[str, Any]:
    """A message whose order is open."""
    now = image_coordination(client).server_time()
    assert ImageRequestStore(client).open(name, now=now, deadline=now + seconds, limit=100)
    return {
        "order": name, "model": {}, "checkpoint": None, "prompt": PROMPT, "seeds": [1, 2], "deadline": now + seconds,
    }  # fmt: skip


def test_a_message_that_comes_twice_is_drawn_once(redis_url: str) -> None:
    """While one sampler draws, another drops it; once it is closed, both do. A late one is not begun."""
    hangs, other = Hangs(), Hangs()
    one, two = (
        process.Sampler(SamplerSettings(redis_url=redis_url), lambda _, each=each: each) for each in (hangs, other)
    )  # type: ignore[misc]
    with connect_redis(redis_url) as client:
        message = order(client, "twice")
        drawing = threading.Thread(target=one.answer_message, args=[message])
        drawing.start()
        wait_for(lambda: hangs.asked)
        two.answer_message(message)
        hangs.let.set()
        drawing.join()
        (answer,) = image_coordination(client).pop_answers("twice", 0)
        assert answer["status"] == "drawn"
        assert ImageRequestStore(client).get_images(answer["images"]) == [b"image", b"image"]
        ImageRequestStore(client).close("twice", answer["images"])
        assert ImageRequestStore(client).get_images(answer["images"]) == [None, None]
        one.answer_message(message)
        two.answer_message({**order(client, "late"), "deadline": image_coordination(client).server_time() - 1})
        assert not client.exists("dipole:answers:twice", "dipole:answers:late")
    assert (hangs.asked, other.asked) == (1, 0)


def test_a_stuck_sampler_stops_beating(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It beats while it draws, not past an order's deadline and grace, and again when that order has ended."""
    monkeypatch.setattr(image_requests, "HEARTBEAT_TTL_S", 0.4)
    monkeypatch.setattr(process, "REQUEST_CLAIM_TTL_S", 0.4)
    monkeypatch.setattr(process, "STUCK_AFTER_S", 0.0)
    hangs = Hangs()
    stuck = process.Sampler(SamplerSettings(redis_url=redis_url), lambda _: hangs)
    with connect_redis(redis_url) as client:

        def beats() -> bool:
            return bool(ImageRequestStore(client).count_samplers(now=image_coordination(client).server_time()))

        stuck.start()
        wait_for(beats)
        drawing = threading.Thread(target=stuck.answer_message, args=[order(client, "stuck", 1.5)])
        drawing.start()
        wait_for(lambda: hangs.asked)
        time.sleep(0.6)
        assert beats()
        assert image_coordination(client).claimed_keys(["stuck"])
        wait_for(lambda: not beats())
        hangs.let.set()
        drawing.join()
        wait_for(beats)
        stuck.stop()
        assert not beats()


def test_the_probe_tells_no_sampler_from_no_redis(redis_url: str) -> None:
    """Readiness needs a beat; liveness forgives that Redis is away, and nothing else."""
    there, away = SamplerSettings(redis_url=redis_url), SamplerSettings(redis_url="redis://127.0.0.1:9/0")
    for live in (False, True):
        with pytest.raises(ProcessUnhealthy, match="no sampler"):
            process.check_health(there, live=live)
    with pytest.raises(ProcessUnhealthy, match="Redis does not answer"):
        process.check_health(away)
    process.check_health(away, live=True)
    with connect_redis(redis_url) as client:
        ImageRequestStore(client).record_heartbeat(socket.gethostname(), now=image_coordination(client).server_time())
        process.check_health(there)
        ImageRequestStore(client).remove_heartbeat(socket.gethostname())
