"""Training without a reward: pairs of images, and a finished job's rankings once more, by REST and by the session."""

from __future__ import annotations

import asyncio
import base64
import gc
import io
import json
import shutil
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dipole.errors import InvalidInput
from dipole.settings import ApiSettings
from dipole.tiny.job import LORA_TARGETS
from dipole_trainer import features, generators
from dipole_trainer.api.app import create_app
from dipole_trainer.compute.micro_batches import MicroBatches
from dipole_trainer.datasets import recordings
from dipole_trainer.distributed.group import ProcessGroup
from dipole_trainer.ranking.groups import CandidateGroup, RankedGroup, RankingBacklog
from dipole_trainer.ranking.in_process import InProcessRanker
from dipole_trainer.ranking.selection import GroupOrder, order_group
from dipole_trainer.spec import TrainSpec
from dipole_trainer.storage import job_layout
from dipole_trainer.training import session
from dipole_trainer.training.candidate_recorder import CandidateRecorder
from dipole_trainer.training.interface import RunSession
from dipole_trainer.training.offline_sources import PairsSource, ReplaySource
from dipole_trainer.training.rollout import Rollout
from dipole_trainer.worker.worker import Worker

NOWHERE = Path("nowhere")
PROMPTS = ["a red circle", "a blue square", "a green triangle"]


class Nobody:
    """A ranker where no reward is alive: to ask is an error."""

    def takes_latents(self) -> bool:
        return False

    def submit(self, group: CandidateGroup) -> None:
        raise AssertionError(f"a reward was asked for {group.id}")

    def collect(self, timeout_s: float) -> RankedGroup | None:
        raise AssertionError("a reward was waited for")

    def list_pending(self) -> dict[str, RankingBacklog]:
        return {}

    def list_unanswered(self) -> dict[str, dict[str, float]]:
        return {}

    def cancel(self, *, withdraw: bool = False) -> None:
        pass

    def close(self) -> None:
        pass


class Silent(Nobody):
    """A ranker whose rewards have not answered yet."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.withdrawn: list[str] = []

    def submit(self, group: CandidateGroup) -> None:
        self.asked.append(group.id)

    def collect(self, timeout_s: float) -> RankedGroup | None:
        return None

    def cancel(self, *, withdraw: bool = False) -> None:
        if withdraw:
            self.withdrawn += self.asked


def brightness(prompt: str, images: np.ndarray, metadata: Any) -> list[float]:
    return [float(value) for value in images.astype(np.float64).mean((1, 2, 3))]


def darkness(prompt: str, images: np.ndarray, metadata: Any) -> list[float]:
    return [-value for value in brightness(prompt, images, metadata)]


def png(level: int, side: int = 64) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (level, level, level)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def write_pairs(path: Path, rows: Sequence[tuple[str, int, int]]) -> Path:
    """A stored pairs file of grey images: (prompt, chosen's level, rejected's)."""
    lines = [{"prompt": prompt, "chosen": png(chosen), "rejected": png(rejected)} for prompt, chosen, rejected in rows]
    path.write_text("\n\n".join(json.dumps(line) for line in lines) + "\n")
    return path


def pairs_spec(**changes: Any) -> TrainSpec:
    base: dict[str, Any] = {
        "pairs_file": "file-1", "steps": 8, "candidates": 4, "prompts_per_step": 2, "checkpoint_every": 100,
        "optimizer": {"lr": 4e-3}, "method": {"type": "sft"}, "lora": {"target_modules": LORA_TARGETS},
        "samples": {"prompts": 0},
    }  # fmt: skip
    return TrainSpec.model_validate({**base, **changes})


def online_spec(**changes: Any) -> TrainSpec:
    base: dict[str, Any] = {
        "prompts": [{"prompt": prompt, "metadata": {"place": place}} for place, prompt in enumerate(PROMPTS)],
        "rewards": [{"name": "bright"}, {"name": "dark", "weight": 0}], "steps": 3, "candidates": 6,
        "prompts_per_step": 2, "chunk_size": 3, "checkpoint_every": 1, "optimizer": {"lr": 1e-3},
        "method": {"drpo": {"positives": 2, "negatives": 2}}, "record_candidates": True,
        "samples": {"prompts": 0},
    }  # fmt: skip
    return TrainSpec.model_validate({**base, **changes})


def replay_of(spec: TrainSpec, **changes: Any) -> TrainSpec:
    kept = spec.model_dump(exclude={"prompts", "rewards", "record_candidates"}, exclude_none=True)
    return TrainSpec.model_validate({**kept, "replay_job": "ftjob-1", **changes})


def train(spec: TrainSpec, workdir: Path, **more: Any) -> tuple[dict[str, torch.Tensor], list[Any]]:
    """Weights of the newest checkpoint, and events."""
    events: list[Any] = []
    ranker = Nobody() if spec.is_offline else InProcessRanker({"bright": brightness, "dark": darkness}, spec.rewards)
    outcome = session.run_session(
        spec, job_id="job", workdir=workdir, models_dir=NOWHERE,
        on_event=lambda kind, data: events.append((kind, data)),
        **{"ranker": ranker, "control": lambda: "run", **more},
    )  # fmt: skip
    assert outcome in ("succeeded", "paused")
    trained = job_layout.newest_checkpoint(workdir)
    assert trained is not None
    return load_file(trained / job_layout.adapter_weights_file("unet")), events


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def rollout_of(spec: TrainSpec) -> Rollout:
    generator = generators.build_generator(spec, models_dir=NOWHERE)
    return Rollout(
        spec,
        generator,
        features.build_features(spec.features, generator, models_dir=NOWHERE),
        MicroBatches(spec.chunk_size),
    )


def levels(spec: TrainSpec, state: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Mean brightness of some samples, of the base and with the trained weights."""
    generator = generators.build_generator(spec, models_dir=NOWHERE)
    noise = generator.draw_noise(range(8))
    with torch.no_grad():
        before = generator.decode_images(generator(noise, PROMPTS[0])).mean()
        generator.load_state(state)
        return float(before), float(generator.decode_images(generator(noise, PROMPTS[0])).mean())


def kept(workdir: Path) -> Path:
    return workdir / "candidates"


# ---- pairs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [
        {"type": "sft"},
        {"type": "dpo", "dpo": {"positives": 2, "negatives": 2, "beta": 5.0}},
        {"type": "drpo", "drpo": {"positives": 2, "negatives": 2, "radii": [1.0], "ref_lambda": 0}},
    ],
)
def test_pairs_move_samples_towards_what_was_chosen(tmp_path: Path, method: dict[str, Any]) -> None:
    """Bright images chosen and dark ones rejected make samples brighter, and no reward is asked."""
    data = write_pairs(tmp_path / "pairs.jsonl", [(prompt, 235, 20) for prompt in PROMPTS for _ in range(2)])
    spec = pairs_spec(method=method)
    state, events = train(spec, tmp_path / "run", data=data)
    before, after = levels(spec, state)
    assert after > before + 5
    steps = [data for kind, data in events if kind == "step"]
    assert len(steps) == 8
    assert all(data["skipped"] == 0 and data["rewards"] == {} for data in steps)


def test_an_offline_job_waits_for_no_reward() -> None:
    """Its rewards only watch its evaluations, whatever their weight; without evaluations they are not asked at all."""
    rewards = [{"name": "bright"}, {"name": "watched", "weight": 0}]
    held_out = {"prompts": [{"prompt": PROMPTS[0]}]}
    pairs = pairs_spec(rewards=rewards, evaluation=held_out)
    assert [(each.name, each.weight, each.required) for each in pairs.asked_rewards] == [
        ("bright", 0, False), ("watched", 0, False),
    ]  # fmt: skip
    assert pairs_spec(rewards=rewards).asked_rewards == ()
    online = TrainSpec(prompts=[{"prompt": PROMPTS[0]}], rewards=rewards)
    assert [each.required for each in online.asked_rewards] == [True, False]


def test_a_prompt_s_pairs_are_one_group(tmp_path: Path) -> None:
    """Chosen rows are the positives and rejected ones the negatives, as many as there are and as are wanted."""
    rows = [("few", 200, 10), ("few", 210, 20), *[("many", 200 + row, row) for row in range(9)]]
    spec = pairs_spec(method={"type": "dpo", "dpo": {"positives": 4, "negatives": 3}})
    rollout = rollout_of(spec)
    source = PairsSource(spec, rollout, ProcessGroup("cpu"), "job", write_pairs(tmp_path / "pairs.jsonl", rows))
    found = {drawn.prompt.prompt: (group, drawn) for group, drawn in source.draw_groups(0, keep_graphs=False).items()}
    answers = {}
    while (ranked := source.ranker.collect(0)) is not None:
        answers[ranked.group_id] = order_group(ranked, source.rewards, positives=4, negatives=3)
    for prompt, (sides, count) in {"few": ((2, 2), 4), "many": ((4, 3), 8)}.items():
        group, drawn = found[prompt]
        chosen = answers[group]
        assert isinstance(chosen, GroupOrder)
        assert (len(drawn.ranked_latents), len(chosen.selection.positives), len(chosen.selection.negatives)) == (
            count,
            *sides,
        )
        bright = rollout.decode_group(drawn)[0].mean((1, 2, 3)) > 200  # its VAE was not made for grey images
        assert bright[list(chosen.selection.positives)].all()
        assert not bright[list(chosen.selection.negatives)].any()
        assert drawn.x is not None
        assert len(drawn.x) == spec.candidates
        assert not drawn.ranks_itself


def test_every_pair_of_a_prompt_takes_its_turn(tmp_path: Path) -> None:
    """Best-of uses one chosen image an update, another each time."""
    spec = pairs_spec(prompts_per_step=1)
    rows = [("p", 60 + 60 * row, 0) for row in range(3)]
    source = PairsSource(
        spec, rollout_of(spec), ProcessGroup("cpu"), "job", write_pairs(tmp_path / "pairs.jsonl", rows)
    )
    drawn = [drawn for step in range(12) for drawn in source.draw_groups(step, keep_graphs=False).values()]
    assert {len(each.ranked_latents) for each in drawn} == {2}
    assert len({each.ranked_latents[0].mean().item() for each in drawn}) == 3


def test_pairs_leave_memory_with_their_job(tmp_path: Path) -> None:
    """Without the garbage collector: a finished job's model must not stay on a GPU until that looks."""
    spec = pairs_spec(prompts_per_step=1)
    source = PairsSource(
        spec, rollout_of(spec), ProcessGroup("cpu"), "job", write_pairs(tmp_path / "pairs.jsonl", [("p", 200, 0)])
    )
    source.draw_groups(0, keep_graphs=False)
    gone = weakref.ref(source)
    gc.disable()
    try:
        del source
        assert gone() is None
    finally:
        gc.enable()


def test_offline_evaluations_without_rewards_give_samples_and_diversity(tmp_path: Path) -> None:
    """No score is made up and nobody is asked."""
    data = write_pairs(tmp_path / "pairs.jsonl", [(PROMPTS[0], 200, 0)])
    held_out = {"prompts": [{"prompt": PROMPTS[1]}], "images_per_prompt": 2}
    spec = pairs_spec(steps=1, evaluation=held_out, samples={"prompts": 1})
    _, events = train(spec, tmp_path / "run", data=data)
    evaluations = [data for kind, data in events if kind == "evaluation"]
    assert [(data["step"], data["scores"]) for data in evaluations] == [(0, {}), (1, {})]
    assert (tmp_path / "run/samples/step-1.png").is_file()


def test_a_cancelled_offline_job_withdraws_what_its_evaluation_waits_for(tmp_path: Path) -> None:
    """People would go on ranking for nobody."""
    data = write_pairs(tmp_path / "pairs.jsonl", [(PROMPTS[0], 200, 0)])
    spec = pairs_spec(steps=1, rewards=[{"name": "people"}], evaluation={"prompts": [{"prompt": PROMPTS[1]}]})
    people = Silent()
    outcome = session.run_session(
        spec, job_id="job_1", workdir=tmp_path / "run", models_dir=NOWHERE, data=data, ranker=people,
        on_event=lambda kind, data: None, control=lambda: "cancel" if people.asked else "run",
    )  # fmt: skip
    assert outcome == "cancelled"
    assert people.withdrawn == people.asked != []


# ---- recording ------------------------------------------------------------------------------------------------------


def test_every_group_of_every_step_is_recorded(tmp_path: Path) -> None:
    """Latents that decode to what was ranked, in fp32 bit for bit; prompts, seeds and every reward's answer beside."""
    spec = online_spec(steps=2)
    asked: list[CandidateGroup] = []

    class Watching(InProcessRanker):
        def submit(self, group: CandidateGroup) -> None:
            asked.append(group)
            super().submit(group)

    ranker = Watching({"bright": brightness, "dark": darkness}, spec.rewards)
    train(spec, tmp_path, ranker=ranker)
    names = job_layout.sort_candidate_files(path.name for path in kept(tmp_path).iterdir())
    assert names == ["step-0.safetensors", "step-1.safetensors"]
    generator = generators.build_generator(spec, models_dir=NOWHERE)
    for name in names:
        with (kept(tmp_path) / name).open("rb") as file:
            told = recordings.read_recorded_step(file)
        latents = load_file(kept(tmp_path) / name)
        previews = {recordings.preview_name(group.index) for group in told.groups}
        assert {value.dtype for name, value in latents.items() if name not in previews} == {torch.float32}
        for group in told.groups:
            (sent,) = [each for each in asked if each.id == f"job.{told.step}.{group.index}"]
            assert (group.prompt.prompt, group.prompt.metadata, list(group.seeds)) == (
                sent.prompt, sent.metadata, list(sent.seeds),
            )  # fmt: skip
            assert np.array_equal(generator.decode_images(latents[str(group.index)]), sent.images)
            assert recordings.preview_name(group.index) in latents
            assert list(group.results["bright"].scores) == brightness("", sent.images, None)
            assert list(group.results["dark"].scores) == darkness("", sent.images, None)
    assert tuple(told.job.rewards) == spec.rewards


def test_entries_of_several_processes_make_one_file(tmp_path: Path) -> None:
    """They are JSON, and arrive in any order; half precision is kept in two bytes a number; nothing partial is left."""
    spec = online_spec(precision="bf16")
    rollout = rollout_of(spec)
    ranker = InProcessRanker({"bright": brightness, "dark": darkness}, spec.rewards)
    recorder = CandidateRecorder(spec, tmp_path, "bf16")
    entries = []
    for index, prompt in enumerate(spec.prompts[:2]):
        drawn = rollout.sample_group(0, index, prompt)
        ranker.submit(CandidateGroup(str(index), 0, prompt.prompt, None, rollout.decode_group(drawn)[0], drawn.seeds))
        ranked = ranker.collect(30)
        assert ranked is not None
        entries.append(json.loads(json.dumps(recorder.make_entry(drawn, ranked))))
    recorder.write_step(0, entries, spec.rewards)
    (path,) = kept(tmp_path).iterdir()
    first = path.read_bytes()
    recorder.write_step(0, entries[::-1], spec.rewards)
    assert [each.name for each in kept(tmp_path).iterdir()] == [path.name]
    assert path.read_bytes() == first
    assert {value.dtype for value in load_file(path).values()} == {torch.bfloat16}


def test_a_paused_job_records_what_an_undisturbed_one_does(tmp_path: Path) -> None:
    """A step that stops half-way is not recorded, and is when it has been trained."""
    train(online_spec(), tmp_path / "whole")
    first = tmp_path / "cut/checkpoint-1"
    train(online_spec(), tmp_path / "cut", control=lambda: "pause" if first.is_dir() else "run")
    assert len(list(kept(tmp_path / "cut").iterdir())) < 3
    train(online_spec(), tmp_path / "cut")
    for path in kept(tmp_path / "whole").iterdir():
        one, other = (load_file(kept(tmp_path / run) / path.name) for run in ("whole", "cut"))
        assert same(one, other)


def test_later_candidates_are_forgotten_on_resume(tmp_path: Path) -> None:
    """What a lost stretch of training had ranked is no part of the resumed job's recording, should it stop there."""
    train(online_spec(), tmp_path)
    for step in (2, 3):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    train(online_spec(), tmp_path, control=lambda: "pause")
    assert [path.name for path in kept(tmp_path).iterdir()] == ["step-0.safetensors"]


# ---- replays --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [
        {"type": "drpo", "drpo": {"positives": 2, "negatives": 2, "mask_self": True}},
        {"type": "dpo", "dpo": {"positives": 2, "negatives": 2}},
        {"type": "grpo"},
        {"type": "pso"},
        {"type": "random", "random": {"positives": 2, "negatives": 2}},
    ],
)
def test_a_replay_with_the_same_settings_is_the_job_itself(tmp_path: Path, method: dict[str, Any]) -> None:
    """The first update, and so every other, is the online run's to the last bit, though no reward is alive."""
    spec = online_spec(method=method, steps=2)
    once, _ = train(spec, tmp_path / "online")
    again, _ = train(replay_of(spec), tmp_path / "replay", data=kept(tmp_path / "online"))
    assert same(once, again)
    first, other = (
        load_file(tmp_path / run / "checkpoint-1" / "optimizer.safetensors") for run in ("online", "replay")
    )
    assert same(first, other)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a DrPO job of three steps recorded."""
    folder = tmp_path_factory.mktemp("recording")
    train(online_spec(), folder)
    return kept(folder)


def test_other_weights_train_what_a_job_with_them_would_have(recording: Path, tmp_path: Path) -> None:
    """Trained on the reward that was held out, the first update is that of a job on that reward."""
    rewards = [{"name": "dark"}]
    online, _ = train(online_spec(steps=1, rewards=rewards), tmp_path / "online")
    replayed, _ = train(replay_of(online_spec(), steps=1, rewards=rewards), tmp_path / "replay", data=recording)
    original, _ = train(replay_of(online_spec(), steps=1), tmp_path / "original", data=recording)
    assert same(online, replayed)
    assert not same(original, replayed)


def test_with_another_method_x_moves_and_what_was_ranked_stays(recording: Path) -> None:
    """x is ranked itself until the weights move; past the last step comes the first, on its own noises."""
    spec = replay_of(online_spec(), method={"type": "sft"}, steps=4)
    rollout = rollout_of(spec)
    source = ReplaySource(spec, rollout, ProcessGroup("cpu"), "job", recording)
    before = source.draw_groups(0, keep_graphs=False)
    assert all(drawn.ranks_itself for drawn in before.values())
    with torch.no_grad():
        for parameter in rollout.generator.parameters():
            parameter.add_(0.05)
    after = source.draw_groups(3, keep_graphs=False)
    assert list(after) == ["job.3.0", "job.3.1"]
    for one, other in zip(before.values(), after.values(), strict=True):
        assert torch.allclose(
            one.ranked_latents, other.ranked_latents, rtol=1e-4, atol=1e-4
        )  # x itself at first: to rounding
        assert torch.equal(one.noise, other.noise)
        assert not torch.equal(other.x, other.ranked_latents)
        assert not other.ranks_itself


MISFITS: list[tuple[dict[str, Any], str]] = [
    ({"candidates": 8}, "candidates"),
    ({"prompts_per_step": 3}, "prompts_per_step"),
    ({"seed": 1}, "seed"),
    ({"resolution": 32}, "resolution"),
    ({"rewards": [{"name": "bright"}, {"name": "shapes"}]}, "rewards"),
    ({"rewards": [{"name": "bright", "weight": 0}]}, "rewards"),
    ({"method": {"type": "pso"}}, "method.type"),
    ({"method": {"type": "grpo"}}, "method.type"),
]


@pytest.mark.parametrize(("change", "field"), MISFITS)
def test_a_replay_that_does_not_fit_is_refused_by_field(
    recording: Path, tmp_path: Path, change: dict[str, Any], field: str
) -> None:
    """Before anything is trained."""
    with pytest.raises(InvalidInput) as found:
        train(replay_of(online_spec(), **change), tmp_path, data=recording)
    assert found.value.field == field
    assert job_layout.checkpoint_steps(tmp_path) == []


@pytest.mark.parametrize("broken", [b"", b"\x08\0\0\0\0\0\0\0{}      ", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{}"])
def test_a_damaged_recording_is_a_sentence(tmp_path: Path, broken: bytes) -> None:
    """So is a folder without any."""
    kept(tmp_path).mkdir()
    spec = replay_of(online_spec())
    with pytest.raises(InvalidInput, match="record_candidates"):
        train(spec, tmp_path / "run", data=kept(tmp_path))
    (kept(tmp_path) / "step-0.safetensors").write_bytes(broken)
    with pytest.raises(InvalidInput, match="damaged"):
        train(spec, tmp_path / "run", data=kept(tmp_path))


# ---- by REST, with a worker that trains -----------------------------------------------------------------------------


def platform(folder: Path) -> ApiSettings:
    return ApiSettings(
        home=folder, database_url=f"sqlite:///{folder}/jobs.db", artifacts_url=f"{folder}/artifacts",
        models_dir=folder / "models",
    )  # fmt: skip


async def post(client: httpx.AsyncClient, path: str, **what: Any) -> dict[str, Any]:
    response = await client.post(path, **what)
    assert response.status_code == 200, response.text
    found = response.json()
    assert isinstance(found, dict)
    return found


@asynccontextmanager
async def api(settings: ApiSettings) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8400", timeout=60) as client:
            yield client


def work(settings: ApiSettings, make_ranker: Any = lambda *_: Nobody()) -> None:
    """A worker trains the job that waits."""
    worker = Worker(settings, cast(RunSession, session.run_session), make_ranker)
    assert worker.train_next_job()
    worker.database.close()


def trained(settings: ApiSettings, job_id: str) -> dict[str, torch.Tensor]:
    folder = job_layout.newest_checkpoint(Path(settings.artifacts_url) / "jobs" / job_id)
    assert folder is not None
    return load_file(folder / job_layout.adapter_weights_file("unet"))


def test_pairs_are_uploaded_and_trained_on(tmp_path: Path) -> None:
    """Upload, create, train, look: where dark images were chosen, samples are darker. No reward is registered."""
    settings = platform(tmp_path)
    data = write_pairs(tmp_path / "pairs.jsonl", [(prompt, 20, 235) for prompt in PROMPTS for _ in range(2)])
    knobs = pairs_spec().model_dump(
        mode="json", include={"steps", "candidates", "prompts_per_step", "lora", "optimizer"}
    )
    evaluation = {"prompts": [{"prompt": PROMPTS[0]}], "images_per_prompt": 2}

    async def main() -> None:
        async with api(settings) as client:
            form = {"files": {"file": ("pairs.jsonl", data.read_bytes())}, "data": {"purpose": "fine-tune"}}
            file = await post(client, "/v1/files", **form)
            body = {**knobs, "training_file": file["id"], "method": {"type": "sft"}, "evaluation": evaluation}
            job = await post(client, "/v1/fine_tuning/jobs", json=body)
            await asyncio.to_thread(work, settings)
            job = (await client.get(f"/v1/fine_tuning/jobs/{job['id']}")).json()
            assert (job["status"], job["step"]) == ("succeeded", 8), job["error"]
            listed = (await client.get(f"/v1/fine_tuning/jobs/{job['id']}/artifacts")).json()["data"]
            assert {"samples/step-8.png", "export/pytorch_lora_weights.safetensors"} <= {
                each["path"] for each in listed
            }
            before, after = levels(pairs_spec(), trained(settings, job["id"]))
            assert after < before - 5

    asyncio.run(main())


def test_a_job_is_replayed_by_rest_with_another_method(tmp_path: Path) -> None:
    """A DrPO job records; its reward is gone; best-of-K is trained on what it recorded, as by the session itself."""
    settings, spec = platform(tmp_path), online_spec(steps=2, rewards=[{"name": "bright"}])
    knobs = spec.model_dump(mode="json", exclude_unset=True)

    async def main() -> None:
        async with api(settings) as client:
            await post(client, "/v1/rewards", json={"name": "bright", "url": "http://127.0.0.1:9"})
            first = await post(client, "/v1/fine_tuning/jobs", json={**knobs, "allow_unready": True})
            scorers = {"bright": brightness}
            ranker = lambda *_: InProcessRanker(scorers, spec.rewards)  # noqa: E731
            await asyncio.to_thread(work, settings, ranker)
            assert (await client.delete("/v1/rewards/bright")).status_code == 200
            body = {"replay_job": first["id"], "method": {"type": "sft"}, "chunk_size": 3, "optimizer": {"lr": 1e-3}}
            again = await post(client, "/v1/fine_tuning/jobs", json=body)
            await asyncio.to_thread(work, settings)
            again = (await client.get(f"/v1/fine_tuning/jobs/{again['id']}")).json()
            assert (again["status"], again["step"]) == ("succeeded", 2), again["error"]
            data = tmp_path / "artifacts/jobs" / first["id"] / "candidates"
            replay = replay_of(spec, method={"type": "sft"})
            assert same(train(replay, tmp_path / "run", data=data)[0], trained(settings, again["id"]))
            assert not same(trained(settings, first["id"]), trained(settings, again["id"]))

    asyncio.run(main())
