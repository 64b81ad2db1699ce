"""What a model cannot do, as a session tells it: images that overflow, prompts it cuts, a schedule of many steps, runs
that train nothing, windows that do not fit.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dipole.errors import InvalidInput, NotFinite, NothingToLearn
from dipole_trainer import features, generators
from dipole_trainer.evaluation import scoring
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.ranking.groups import CandidateGroup, RewardResult
from dipole_trainer.ranking.in_process import InProcessRanker
from dipole_trainer.seeds import derive_seeds
from dipole_trainer.spec import EvalSpec, TrainSpec
from dipole_trainer.storage import job_layout
from dipole_trainer.training import session

PROMPT = "a red circle"
METHODS: dict[str, dict[str, Any]] = {
    "drpo": {"drpo": {"positives": 2, "negatives": 2}},
    "dpo": {"type": "dpo", "dpo": {"positives": 2, "negatives": 2}},
    "grpo": {"type": "grpo"},
    "pso": {"type": "pso"},
    "sft": {"type": "sft"},
}


def make_spec(**changes: Any) -> TrainSpec:
    base: dict[str, Any] = {
        "model": "mine", "prompts": [{"prompt": PROMPT}], "rewards": [{"name": "bright"}], "steps": 1, "candidates": 6,
        "prompts_per_step": 1, "chunk_size": 4, "features": {"type": "latents"}, "lora": {"rank": 2},
        "method": METHODS["drpo"],
    }  # fmt: skip
    return TrainSpec.model_validate({**base, **changes})


def brightness(prompt: str, images: np.ndarray, metadata: Any) -> list[float]:
    return [float(value) for value in images.astype(np.float64).mean((1, 2, 3))]


class Session:
    """A session over a folder of models, with what it reported and what its ranker was asked and answered."""

    def __init__(self, models_dir: Path, score: Callable[..., Any] = brightness) -> None:
        self.models_dir, self.score = models_dir, score
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.ranked: list[tuple[CandidateGroup, RewardResult]] = []
        self.asked: list[int] = []

    def run(self, spec: TrainSpec, workdir: Path, **more: Any) -> str:
        def ask(prompt: str, images: np.ndarray, metadata: Any) -> Any:
            self.asked.append(len(images))
            return self.score(prompt, images, metadata)

        ranker = InProcessRanker(
            {each.name: ask for each in spec.rewards},
            spec.rewards,
            on_ranked=lambda group, reward, result: self.ranked.append((group, result)),
        )
        return session.run_session(
            spec, job_id="job", workdir=workdir, models_dir=self.models_dir, ranker=ranker,
            on_event=lambda kind, data: self.events.append((kind, data)), control=more.pop("control", lambda: "run"),
            **more,
        )  # fmt: skip

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [data for each, data in self.events if each == kind]


# ---- images that are not finite -------------------------------------------------------------------------------------


@torch.no_grad()
def write_overflowing(
    models: Path, folder: Path, latents: Callable[[OneStepGenerator], torch.Tensor], above: int
) -> None:
    """tiny-sd as `mine` with a VAE that overflows float16 on all of these latents but the `above` faintest."""
    generator = generators.build_generator(make_spec(model="tiny-sd"), models_dir=models)
    pipe = OneStepGenerator.pipeline_class.from_pretrained(str(models / "tiny-sd"))
    largest = generator.decode_pixels(latents(generator)).sub(0.5).mul(2).abs().flatten(1).amax(1).sort().values
    scale = 65504 / largest[above - 1 : above + 1].mean() if above else 1e7
    for value in (pipe.vae.decoder.conv_out.weight, pipe.vae.decoder.conv_out.bias):
        value.mul_(scale).clamp_(-60000, 60000)
    pipe.vae.register_to_config(force_upcast=False)
    pipe.save_pretrained(str(folder / "mine"))


def first_group(generator: OneStepGenerator) -> torch.Tensor:
    return generator(generator.draw_noise(derive_seeds(0, 0, 0, count=6)), PROMPT)


@pytest.mark.parametrize("method", METHODS)
def test_candidates_that_overflow_are_nulls_and_the_others_train(models: Path, tmp_path: Path, method: str) -> None:
    """The reward sees no image of theirs, the ledger has the reason, one event says so, the step counts them."""
    write_overflowing(models, tmp_path, first_group, above=4)
    run, spec = Session(tmp_path), make_spec(precision="fp16", method=METHODS[method])
    assert run.run(spec, tmp_path / "job") == "succeeded"
    ((_, result),) = run.ranked
    lost = [row for row, score in enumerate(result.scores) if score is None]
    assert 0 < len(lost) < 5
    assert run.asked == [6 - len(lost)]
    assert {result.errors[row] for row in lost} == {"not_finite: pixels of the VAE AutoencoderKL in float16"}
    (told,) = run.told("candidates_not_finite")
    assert (told["count"], told["candidates"]) == (len(lost), 6)
    assert "precision fp16, the VAE AutoencoderKL in float16" in told["reason"]
    assert run.told("step")[0]["not_finite"] == len(lost)
    state = load_file(tmp_path / "job/checkpoint-1" / job_layout.adapter_weights_file("unet"))
    assert any(value.any() for name, value in state.items() if "lora_B" in name)


def test_a_group_without_any_finite_image_is_an_error_and_no_rewards_fault(models: Path, tmp_path: Path) -> None:
    write_overflowing(models, tmp_path, first_group, above=0)
    run = Session(tmp_path)
    with pytest.raises(NotFinite, match=r"(\d) of \1 images .* \(precision fp16, the VAE AutoencoderKL in float16\)"):
        run.run(make_spec(precision="fp16"), tmp_path / "job")
    assert run.asked == []


def test_an_evaluation_has_nulls_too(models: Path, tmp_path: Path) -> None:
    """Of the images that overflow, also of a prompt's all; the others are scored, and diversity is theirs."""

    def draw(generator: OneStepGenerator, prompt: int) -> torch.Tensor:
        return generator(generator.draw_noise(derive_seeds(7, "evaluation", prompt, count=4)), PROMPT)

    write_overflowing(models, tmp_path, lambda generator: draw(generator, 0), above=3)
    generator = generators.build_generator(make_spec(precision="fp16"), models_dir=tmp_path)
    spec = EvalSpec.model_validate({"prompts": [{"prompt": PROMPT}] * 6, "images_per_prompt": 1, "seed": 7})
    whole = spec.model_copy(update={"images_per_prompt": 4})
    phi = features.build_features(make_spec().features, generator, models_dir=tmp_path)
    for asked in (whole, spec):
        ranker = InProcessRanker({"bright": brightness})
        scored, sheets = scoring.score_prompts(asked, generator, phi, ranker, step=0, job_id="job")
        values = [score for each in scored for score in each.scores["bright"]]
        assert len(values) == 6 * asked.images_per_prompt
        assert 0 < values.count(None) < len(values)
        assert len(sheets) == 6
        assert (scored[0].diversity is None) == (asked is spec)
        ranker.close()
    with torch.no_grad():
        generator.vae.decoder.conv_out.bias.fill_(torch.inf)
    with pytest.raises(NotFinite, match="24 of 24 images"):
        scoring.score_prompts(whole, generator, phi, InProcessRanker({"bright": brightness}), step=0, job_id="job")


def test_recorded_groups_of_some_candidates_are_replayed(models: Path, tmp_path: Path) -> None:
    """A recording has those that are finite, and a replay draws the same."""
    write_overflowing(models, tmp_path, first_group, above=4)
    spec = make_spec(precision="fp16", record_candidates=True)
    run = Session(tmp_path)
    run.run(spec, tmp_path / "job")
    kept = spec.model_dump(exclude={"prompts", "rewards", "record_candidates"}, exclude_none=True)
    replay = Session(tmp_path)
    data = tmp_path / "job" / job_layout.CANDIDATES_FOLDER
    spec = TrainSpec.model_validate({**kept, "replay_job": "ftjob-1"})
    assert replay.run(spec, tmp_path / "replay", data=data) == "succeeded"
    one, other = (
        load_file(tmp_path / name / "checkpoint-1" / job_layout.adapter_weights_file("unet"))
        for name in ("job", "replay")
    )
    assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)


# ---- nothing to learn -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3])
def test_a_run_without_any_update_fails_whatever_its_length(models: Path, tmp_path: Path, steps: int) -> None:
    """With the reasons of its groups counted; its steps are told before."""
    run = Session(models, lambda prompt, images, metadata: [0.5] * len(images))
    with pytest.raises(NothingToLearn, match=rf"in {steps} steps .* {2 * steps} groups {2 * steps} because no spread"):
        run.run(make_spec(model="tiny-sd", steps=steps, prompts_per_step=2), tmp_path)
    assert len(run.told("step")) == steps
    assert job_layout.newest_checkpoint(tmp_path) is None or steps > 1


def test_an_update_and_then_none_is_a_success(models: Path, tmp_path: Path) -> None:
    answers = iter([brightness, *[lambda prompt, images, metadata: [0.5] * len(images)] * 2])
    run = Session(models, lambda *asked: next(answers)(*asked))
    assert run.run(make_spec(model="tiny-sd", steps=3), tmp_path) == "succeeded"


def test_reasons_are_counted_over_a_pause(models: Path, tmp_path: Path) -> None:
    """A run that is paused and resumed fails with all of its groups."""
    run = Session(models, lambda prompt, images, metadata: [0.5] * len(images))
    spec = make_spec(model="tiny-sd", steps=4)
    assert run.run(spec, tmp_path, control=lambda: "pause" if len(run.told("step")) == 2 else "run") == "paused"
    with pytest.raises(NothingToLearn, match="in 4 steps in a row: of their 4 groups 4 because no spread"):
        run.run(spec, tmp_path)


def test_a_replay_without_any_update_fails(models: Path, tmp_path: Path) -> None:
    """Recorded scores that tell nothing apart train nothing, however few the steps."""
    spec = make_spec(
        model="tiny-sd", record_candidates=True, rewards=[{"name": "bright"}, {"name": "flat", "weight": 0}]
    )
    ranker = InProcessRanker(
        {"bright": brightness, "flat": lambda prompt, images, metadata: [1.0] * len(images)}, spec.rewards
    )
    shared: dict[str, Any] = {"models_dir": models, "on_event": lambda kind, data: None, "control": lambda: "run"}
    session.run_session(spec, job_id="job", workdir=tmp_path / "job", ranker=ranker, **shared)
    kept = spec.model_dump(exclude={"prompts", "rewards", "record_candidates"}, exclude_none=True)
    replay = TrainSpec.model_validate({**kept, "replay_job": "ftjob-1", "rewards": [{"name": "flat"}]})
    data = tmp_path / "job" / job_layout.CANDIDATES_FOLDER
    with pytest.raises(NothingToLearn, match="1 because no spread"):
        session.run_session(replay, job_id="b", workdir=tmp_path / "b", ranker=ranker, data=data, **shared)


# ---- prompts and schedules ------------------------------------------------------------------------------------------


def test_prompts_that_are_cut_are_told_once(models: Path, tmp_path: Path) -> None:
    """With count and example, those of evaluations among them; a run that is resumed does not say it again."""
    long = " ".join(["red"] * 20)
    run = Session(models)
    spec = make_spec(
        model="tiny-sd", steps=2, prompts=[{"prompt": PROMPT}, {"prompt": f"{long} circle"}],
        evaluation={"prompts": [{"prompt": f"{long} square"}], "images_per_prompt": 1},
    )  # fmt: skip
    assert run.run(spec, tmp_path, control=lambda: "pause" if run.told("step") else "run") == "paused"
    run.run(spec, tmp_path)
    (told,) = run.told("prompts_cut")
    assert (told["count"], told["prompts"], told["limit"]) == (2, 3, 16)
    assert told["example"] == f"{long} circle"
    assert told["unread"].endswith("red circle")


def test_nothing_is_told_of_a_model_that_reads_and_draws_all(models: Path, tmp_path: Path) -> None:
    run = Session(models)
    run.run(make_spec(model="tiny-sd"), tmp_path)
    assert run.told("prompts_cut") == run.told("scheduler_changed") == run.told("candidates_not_finite") == []


def test_a_changed_scheduler_is_told_and_stands_in_the_model_card(models: Path, tmp_path: Path) -> None:
    """Whoever loads the base has to do it too: the snippet does."""
    pipe = OneStepGenerator.pipeline_class.from_pretrained(str(models / "tiny-sd"))
    pipe.scheduler = diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1)
    pipe.save_pretrained(str(tmp_path / "mine"))
    run = Session(tmp_path)
    assert run.run(make_spec(), tmp_path / "job") == "succeeded"
    (told,) = run.told("scheduler_changed")
    assert "PNDMScheduler, timestep_spacing 'leading'" in told["what"]
    card = (tmp_path / "job/export/README.md").read_text()
    assert "| scheduler | the model's scheduler (PNDMScheduler" in card
    assert 'from_config(scheduler.config, timestep_spacing="trailing")' in card


# ---- memory ---------------------------------------------------------------------------------------------------------


def test_a_window_that_does_not_fit_is_refused_with_its_arithmetic(models: Path, tmp_path: Path) -> None:
    """When the model is loaded, its own size is known."""
    with pytest.raises(InvalidInput) as caught:
        Session(models).run(
            make_spec(model="tiny-sd", prompts_per_step=1024, max_staleness=16), tmp_path, candidates_max_gib=1.0
        )
    assert caught.value.field == "max_staleness"
    assert str(caught.value).startswith(
        "max_staleness: 17 windows (max_staleness + 1) × 1024 prompts × 6 candidates × 14336 bytes (latents and image "
        "of 64×64 pixels) = 1.4 GiB in flight, and 1 may be (DIPOLE_CANDIDATES_MAX_GIB)"
    )


def test_a_single_window_may_be_too_large() -> None:
    """Of an offline job latents alone are kept."""
    large: dict[str, Any] = {"prompts_per_step": 1024, "candidates": 64}
    with pytest.raises(InvalidInput, match="1 windows") as caught:
        make_spec(**large).check_window(512, 3.0)
    assert caught.value.field == "prompts_per_step"
    offline = make_spec(**large, rewards=[], prompts=[], pairs_file="file-x", method=METHODS["sft"])
    offline.check_window(512, 8.1)
    with pytest.raises(InvalidInput):
        offline.check_window(512, 7.9)
    make_spec(prompts_per_step=8, candidates=24).check_window(1024, 3.0)
