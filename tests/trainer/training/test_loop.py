"""The loop on the shipped tiny-turbo: the fast update is the plain one; neither arrival nor a pause changes a bit."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook

from dipole.errors import InvalidInput, NothingToLearn, RewardUnavailable
from dipole.tiny.world import all_prompts
from dipole_trainer import generators
from dipole_trainer.generators import tiny_pipelines
from dipole_trainer.generators.one_step import TINY_TURBO
from dipole_trainer.generators.tiny_pipelines import write_pipeline
from dipole_trainer.ranking.groups import CandidateGroup, RankedGroup, RewardResult
from dipole_trainer.ranking.in_process import InProcessRanker
from dipole_trainer.spec import TrainSpec
from dipole_trainer.storage import job_layout
from dipole_trainer.training import loop, session

NOWHERE = Path("nowhere")
LINES = [{"prompt": prompt.text, "metadata": prompt.metadata} for prompt in all_prompts(held_out=False)[:6]]


def make_spec(**changes: Any) -> TrainSpec:
    base: dict[str, Any] = {
        "model": "tiny-turbo", "prompts": LINES, "rewards": [{"name": "bright"}], "steps": 3, "candidates": 4,
        "prompts_per_step": 2, "chunk_size": 2, "checkpoint_every": 1, "optimizer": {"lr": 1e-3},
        "method": {"drpo": {"positives": 2, "negatives": 2}}, "samples": {"prompts": 0},
    }  # fmt: skip
    return TrainSpec.model_validate({**base, **changes})


def brightness(prompt: str, images: np.ndarray, metadata: Any) -> list[float]:
    return [float(value) for value in images.astype(np.float64).mean((1, 2, 3))]


def train(
    spec: TrainSpec, workdir: Path, rank: Any = None, control: Any = lambda: "run", events: list[Any] | None = None
) -> tuple[Any, list[Any], str]:
    """Weights of the newest checkpoint, events (also in `events`, where the session raises), outcome of a session."""
    events = [] if events is None else events
    outcome = session.run_session(
        spec,
        job_id="job",
        workdir=workdir,
        models_dir=workdir,
        ranker=rank or InProcessRanker({"bright": brightness}, spec.rewards),
        on_event=lambda kind, data: events.append((kind, data)),
        control=control,
    )
    trained = job_layout.newest_checkpoint(workdir)
    assert trained is not None
    return load_file(trained / job_layout.adapter_weights_file("unet")), events, outcome


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_one_step_is_the_pipelines_own() -> None:
    """G(noise, prompt) equals diffusers' pipeline at one step, guidance 0, on the same latents."""
    spec = make_spec()
    generator = generators.build_generator(spec, models_dir=NOWHERE)
    noise = generator.draw_noise([1, 2])
    pipe = StableDiffusionPipeline.from_pretrained(str(TINY_TURBO), dtype=torch.float32, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        "a red circle",
        num_inference_steps=1,
        guidance_scale=0.0,
        latents=noise,
        num_images_per_prompt=2,
        output_type="latent",
    ).images
    assert torch.allclose(generator(noise, "a red circle"), theirs, atol=1e-5)


def test_reference_is_the_base_without_its_adapter() -> None:
    """With a disturbed adapter, x moves and x_ref does not."""
    generator = generators.build_generator(make_spec(), models_dir=NOWHERE)
    noise = generator.draw_noise([1])
    with torch.no_grad():
        before = generator(noise, "a red circle")
        for parameter in generator.parameters():
            parameter.add_(0.05)
        assert not torch.allclose(generator(noise, "a red circle"), before)
    assert torch.equal(generator.draw_reference(noise, "a red circle"), before)
    assert all(parameter.requires_grad for parameter in generator.parameters())


class Backwards(InProcessRanker):
    """Hands finished groups over in reverse, two at a time."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._held: list[RankedGroup] = []

    def collect(self, timeout_s: float) -> RankedGroup | None:
        ranked = super().collect(timeout_s)
        if ranked is not None:
            self._held.append(ranked)
        return self._held.pop() if len(self._held) == 2 or (self._held and not len(self._in_flight)) else None


def test_order_of_arrival_changes_nothing(tmp_path: Path) -> None:
    """Gradients are added in the order of the prompts, so the weights are equal to the last bit."""
    spec = make_spec(prompts_per_step=4, steps=2)
    one, _, _ = train(spec, tmp_path / "a")
    other, _, _ = train(spec, tmp_path / "b", Backwards({"bright": brightness}, spec.rewards))
    assert same(one, other)


class Unasked(InProcessRanker):
    """A ranker of whom nothing is asked."""

    def submit(self, group: CandidateGroup) -> None:
        raise AssertionError(f"a reward was asked for {group.id}")


@pytest.mark.parametrize("space", ["auto", "latent_mae", "vit_mae", "dinov2", "clip"])
def test_missing_features_are_told_before_a_pipeline_is_loaded(tmp_path: Path, space: str) -> None:
    """This one cannot be: its tokenizer is none."""
    write_pipeline(tmp_path / "hollow", "sd")
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (tmp_path / "hollow/tokenizer" / name).write_text("broken")
    spec = make_spec(model="hollow", features={"type": space})
    with pytest.raises(InvalidInput, match="is not on this machine") as told:
        train(spec, tmp_path, Unasked({"bright": brightness}))
    assert told.value.field == "features.weights"


def test_keys_that_do_not_fit_the_resolution_are_told_before_a_reward_is_asked(tmp_path: Path) -> None:
    """Latents of 3×3 have no patches of 2×2."""
    spec = make_spec(resolution=24, features={"type": "latents", "keys": ["latents_mean_2"]})
    with pytest.raises(InvalidInput, match="patches of 2×2") as told:
        train(spec, tmp_path, Unasked({"bright": brightness}))
    assert told.value.field == "features.keys"


def test_paused_and_resumed_is_bit_equal(tmp_path: Path) -> None:
    """A run stopped after two steps and resumed by a fresh process's objects ends where the undisturbed one does."""
    whole, _, _ = train(make_spec(), tmp_path / "whole")
    second = tmp_path / "cut/checkpoint-2"
    _, _, outcome = train(make_spec(), tmp_path / "cut", control=lambda: "pause" if second.is_dir() else "run")
    assert outcome == "paused"
    resumed, events, outcome = train(make_spec(), tmp_path / "cut")
    assert outcome == "succeeded"
    assert ("resumed", {"step": 2}) in events
    assert same(whole, resumed)


def test_training_changes_the_weights_and_reports_each_step(tmp_path: Path) -> None:
    state, events, _ = train(make_spec(), tmp_path)
    fresh = generators.build_generator(make_spec(), models_dir=NOWHERE).trained_state()
    assert not same(state, fresh)
    steps = [data for kind, data in events if kind == "step"]
    assert [data["step"] for data in steps] == [1, 2, 3]
    assert all(data["rewards"]["bright"] > 0 and data["staleness"] == 0 for data in steps)
    json.dumps([data for _, data in events], allow_nan=False)


def test_staleness_runs_ahead_by_that_many_windows(tmp_path: Path) -> None:
    spec = make_spec(max_staleness=2, steps=5)
    _, events, _ = train(spec, tmp_path)
    assert [data["staleness"] for kind, data in events if kind == "step"] == [0, 1, 2, 2, 2]


def test_groups_that_no_request_holds_are_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    """Where the job names no resolution the model's own counts: 64 images of 1184² do not fit, 63 do."""
    tiny_pipelines.write_pipeline(tmp_path / "large", "sd")
    config = tmp_path / "large/unet/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "sample_size": 148}))
    with pytest.raises(InvalidInput, match="1184") as refused:
        train(make_spec(model="large", candidates=64, features={"type": "latents"}), tmp_path)
    assert refused.value.field == "candidates"
    make_spec(candidates=63).check_side(1184)
    make_spec(candidates=64, rewards=[], pairs_file="file-x", method={"type": "sft"}).check_side(1184)  # sends none


def test_an_optional_reward_that_fails_is_left_out_and_said(tmp_path: Path) -> None:
    def broken(prompt: str, images: np.ndarray, metadata: Any) -> list[float]:
        raise RuntimeError("no weights")

    spec = make_spec(steps=1, rewards=[{"name": "bright"}, {"name": "broken", "required": False}])
    alone, _, _ = train(make_spec(steps=1), tmp_path / "alone")
    state, events, _ = train(
        spec, tmp_path / "b", InProcessRanker({"bright": brightness, "broken": broken}, spec.rewards)
    )
    assert same(state, alone)
    assert [data["reward"] for kind, data in events if kind == "reward_failure"] == ["broken", "broken"]


def test_a_watched_reward_that_dies_is_told_and_stops_nothing(tmp_path: Path) -> None:
    """By its weight alone: the job trains to its end, and says of each group, also of evaluations, who was away."""

    def dead(prompt: str, images: np.ndarray, metadata: Any) -> list[float]:
        raise RuntimeError("killed")

    held_out = {"prompts": [{"prompt": "a blue circle"}], "images_per_prompt": 2}
    spec = make_spec(steps=1, rewards=[{"name": "bright"}, {"name": "watched", "weight": 0}], evaluation=held_out)
    ranker = InProcessRanker({"bright": brightness, "watched": dead}, spec.rewards)
    state, events, outcome = train(spec, tmp_path / "b", ranker)
    assert outcome == "succeeded"
    assert same(state, train(make_spec(steps=1), tmp_path / "alone")[0])
    away = [(data["step"], data["reward"]) for kind, data in events if kind == "reward_failure"]
    assert away == [(0, "watched")] * 3 + [(1, "watched")]


def test_a_required_reward_that_fails_stops_with_a_checkpoint(tmp_path: Path) -> None:
    """Nothing is lost: the finished steps are on disk, and the same job goes on when the reward is back."""
    calls = []

    def flaky(prompt: str, images: np.ndarray, metadata: Any) -> list[float]:
        calls.append(prompt)
        if len(calls) == 3:
            raise RuntimeError("gone")
        return brightness(prompt, images, metadata)

    spec = make_spec(checkpoint_every=100)
    with pytest.raises(RewardUnavailable, match="bright"):
        train(spec, tmp_path / "cut", InProcessRanker({"bright": flaky}, spec.rewards, threads=1))
    assert job_layout.checkpoint_steps(tmp_path / "cut") == [1]
    resumed, _, _ = train(spec, tmp_path / "cut")
    assert same(resumed, train(spec, tmp_path / "whole")[0])


def test_a_group_that_a_required_reward_cannot_score_is_skipped(tmp_path: Path) -> None:
    """The job goes on with the other groups, and does not train on the rewards that are left."""
    odd = LINES[0]["prompt"]

    def picky(prompt: str, images: np.ndarray, metadata: Any) -> list[float | None]:
        return [None] * len(images) if prompt == odd else list(brightness(prompt, images, metadata))

    spec = make_spec(rewards=[{"name": "bright"}, {"name": "picky"}])
    _, events, outcome = train(spec, tmp_path, InProcessRanker({"bright": brightness, "picky": picky}, spec.rewards))
    assert outcome == "succeeded"
    (skipped,) = [data for kind, data in events if kind == "skipped_group"]
    assert skipped["reason"].startswith("required reward picky: too_few_scores")


def test_a_negative_weight_and_a_gate_teach_what_the_opposite_of_who_passes_would(tmp_path: Path) -> None:
    """Darker is better, and candidate 0 of each group fails the gate: as if it were by far the brightest."""

    def gate(prompt: str, images: np.ndarray, metadata: Any) -> list[float]:
        return [0.1, *[0.9] * (len(images) - 1)]

    def darkness(prompt: str, images: np.ndarray, metadata: Any) -> list[float]:
        ranked = sorted(brightness(prompt, images, metadata)[1:])
        return [-len(images), *[-ranked.index(value) for value in brightness(prompt, images, metadata)[1:]]]

    gated = make_spec(steps=1, rewards=[
        {"name": "bright", "weight": -2.0}, {"name": "safe", "weight": 0, "at_least": 0.5},
    ])  # fmt: skip
    ranker = InProcessRanker({"bright": brightness, "safe": gate}, gated.rewards)
    weights, events, _ = train(gated, tmp_path / "gated", ranker)
    plain = make_spec(steps=1, rewards=[{"name": "dark"}])
    assert same(weights, train(plain, tmp_path / "plain", InProcessRanker({"dark": darkness}, plain.rewards))[0])
    step = next(data for kind, data in events if kind == "step")
    assert (step["gated"], step["skipped"]) == (2, 0)


def test_ranks_alone_are_trained_on_as_ranks(tmp_path: Path) -> None:
    """Whatever `normalize` says; and no mean of ranks is reported as a reward."""

    def places(prompt: str, images: np.ndarray, metadata: Any) -> RewardResult:
        values = brightness(prompt, images, metadata)
        ranks = [1 + sum(other > value for other in values) for value in values]
        return RewardResult(scores=tuple(-float(rank) for rank in ranks), ordinal=True)

    spec = make_spec(steps=1, evaluation={"prompts": LINES[:2], "images_per_prompt": 2})
    ranked, events, _ = train(spec, tmp_path / "places", InProcessRanker({"bright": places}, spec.rewards))
    plain = make_spec(steps=1, rewards=[{"name": "bright", "normalize": "rank"}])
    assert same(ranked, train(plain, tmp_path / "scores")[0])
    assert next(data for kind, data in events if kind == "step")["rewards"] == {}
    assert next(data for kind, data in events if kind == "evaluation")["scores"] == {}


def test_a_group_without_order_is_skipped_and_counted(tmp_path: Path) -> None:
    rank = InProcessRanker({"bright": lambda prompt, images, metadata: [0.5] * len(images)}, make_spec().rewards)
    events: list[Any] = []
    with pytest.raises(NothingToLearn):
        train(make_spec(steps=1), tmp_path, rank, events=events)
    assert next(data for kind, data in events if kind == "step")["skipped"] == 2
    assert "no spread" in next(data for kind, data in events if kind == "skipped_group")["reason"]


def test_a_checkpoint_of_another_adapter_is_refused(tmp_path: Path) -> None:
    train(make_spec(steps=1), tmp_path)
    with pytest.raises(ValueError, match="is of another model or LoRA"):
        train(make_spec(lora={"rank": 8}), tmp_path)


def test_evaluation_compares_with_the_base_on_the_same_noises(tmp_path: Path) -> None:
    """With weights that do not move the images are the same and every difference is nought; with others not."""
    evaluation = {"prompts": LINES[:3], "images_per_prompt": 2, "every": 2}
    still = make_spec(evaluation=evaluation, optimizer={"lr": 1e-30}, samples={"prompts": 2})
    _, events, _ = train(still, tmp_path / "still")
    figures = [data for kind, data in events if kind == "evaluation"]
    assert [data["step"] for data in figures] == [0, 2, 3]
    nought = {"mean": 0, "low": 0, "high": 0, "prompts": 3, "spreads": 0}
    assert figures[-1]["scores"]["bright"]["difference"] == nought
    assert figures[-1]["diversity_ratio"] == 1
    sheets = [(tmp_path / f"still/samples/step-{step}.png").read_bytes() for step in (0, 3)]
    assert sheets[0] == sheets[1]
    _, events, _ = train(make_spec(evaluation=evaluation), tmp_path / "moved")
    moved = [data for kind, data in events if kind == "evaluation"][-1]
    assert moved["scores"]["bright"]["difference"]["mean"] != 0
    stored = json.loads((tmp_path / "moved/evaluation/step-0.json").read_text())
    assert len(stored["prompts"][0]["scores"]["bright"]) == 2


def test_an_evaluation_heeds_a_stop_while_it_waits(tmp_path: Path) -> None:
    """A reward that never answers does not hold a job that somebody cancels."""

    class Silent(InProcessRanker):
        def submit(self, group: CandidateGroup) -> None:
            pass

    spec = make_spec(evaluation={"prompts": LINES[:2], "images_per_prompt": 2})
    orders = itertools.chain(["run", "run"], itertools.repeat("cancel"))
    _, _, outcome = train(spec, tmp_path, Silent({"bright": brightness}, spec.rewards), control=lambda: next(orders))
    assert outcome == "cancelled"


def test_a_run_that_learns_nothing_fails(tmp_path: Path) -> None:
    """Scores without spread for many steps are an error, not a success with the base's weights."""
    flat = InProcessRanker({"bright": lambda prompt, images, metadata: [0.5] * len(images)}, make_spec().rewards)
    small: dict[str, Any] = {"steps": 40, "candidates": 2, "prompts_per_step": 1}
    with pytest.raises(NothingToLearn, match="25 steps in a row"):
        train(make_spec(**small, method={"drpo": {"positives": 1, "negatives": 1}}), tmp_path, flat)


def test_pauses_do_not_hide_that_a_run_learns_nothing(tmp_path: Path) -> None:
    """Steps without an update are counted over resumes."""
    asked: list[str] = []

    def flat(prompt: str, images: np.ndarray, metadata: Any) -> list[float]:
        asked.append(prompt)
        return [0.5] * len(images)

    small: dict[str, Any] = {"steps": 40, "candidates": 2, "prompts_per_step": 1, "checkpoint_every": 100}
    spec = make_spec(**small, method={"drpo": {"positives": 1, "negatives": 1}})
    pausing = InProcessRanker({"bright": flat}, spec.rewards)
    _, events, outcome = train(spec, tmp_path, pausing, lambda: "pause" if len(asked) > 15 else "run")
    assert outcome == "paused"
    asked.clear()
    with pytest.raises(NothingToLearn):
        train(spec, tmp_path, InProcessRanker({"bright": flat}, spec.rewards))
    assert len([kind for kind, _ in events if kind == "step"]) + len(asked) == 25


@pytest.mark.parametrize(("kept", "then"), [(1, 1), (64, 2)])
def test_a_resume_takes_up_the_chunk_size_that_memory_left(tmp_path: Path, kept: int, then: int) -> None:
    """Where it is smaller than the job's, so that it need not run out of memory again."""
    train(make_spec(), tmp_path)
    shutil.rmtree(tmp_path / "checkpoint-3")
    state = tmp_path / "checkpoint-2/training_state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "chunk_size": kept}))
    train(make_spec(), tmp_path)
    assert json.loads((tmp_path / "checkpoint-3/training_state.json").read_text())["chunk_size"] == then


@pytest.mark.parametrize(("decay", "last"), [(0, 1.0), (4, 1 / 5), (19, 1 / 20), (49, 1 / 20)])
def test_the_rate_warms_up_and_falls_to_what_the_decay_leaves(decay: int, last: float) -> None:
    """Linearly; the last update has 1 / (decay_steps + 1) of the rate, though never less than a twentieth."""
    spec = make_spec(steps=100, optimizer={"lr": 2.0, "warmup_steps": 3, "decay_steps": decay})
    rates = [loop.learning_rate(spec, step) for step in range(100)]
    assert rates[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert rates[99] == pytest.approx(2.0 * last)
    assert rates[99 - decay] == 2.0


def test_weights_that_are_not_finite_make_no_image(tmp_path: Path) -> None:
    """No image is made up from NaN."""
    generator = generators.build_generator(make_spec(), models_dir=NOWHERE)
    with torch.no_grad():
        generator.parameters()[0].fill_(float("nan"))
        with pytest.raises(FloatingPointError):
            generator.decode_images(generator(generator.draw_noise([0]), "a red circle"))


def test_an_update_that_breaks_the_weights_leaves_no_checkpoint(tmp_path: Path) -> None:
    """So it pushes out no good one, and the job fails with what to do."""

    def break_it(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        with torch.no_grad():
            optimizer.param_groups[0]["params"][0].fill_(float("nan"))

    hook = register_optimizer_step_post_hook(break_it)
    try:
        with pytest.raises(FloatingPointError, match=r"lower optimizer\.lr"):
            train(make_spec(steps=1), tmp_path)
    finally:
        hook.remove()
    assert job_layout.checkpoint_steps(tmp_path) == []


def test_later_evaluations_are_forgotten_on_resume(tmp_path: Path) -> None:
    """What a lost stretch of training had evaluated is not taken for the resumed run's."""
    evaluation = {"prompts": LINES[:2], "images_per_prompt": 2, "every": 1}
    train(make_spec(evaluation=evaluation), tmp_path)
    for step in (2, 3):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    _, events, _ = train(make_spec(evaluation=evaluation), tmp_path)
    assert [data["step"] for kind, data in events if kind == "evaluation"] == [1, 2, 3]  # the first is said again
    assert ("checkpoint", {"step": 1, "path": "checkpoint-1"}) in events


class Judged(InProcessRanker):
    """Trains on brightness, and has each evaluation's images score what it is told to, by step."""

    def __init__(self, means: Mapping[int, float]) -> None:
        super().__init__({"bright": brightness})
        self.means = means

    def collect(self, timeout_s: float) -> RankedGroup | None:
        ranked = super().collect(timeout_s)
        if ranked is None or ".eval" not in ranked.group_id:
            return ranked
        result = ranked.results["bright"]
        mean = self.means[int(ranked.group_id.partition(".eval")[2].partition(".")[0])]
        return RankedGroup(ranked.group_id, {"bright": replace(result, scores=(mean,) * len(result.scores))})


JUDGED = {0: 0.9, 1: 0.2, 2: 0.8, 3: 0.5, 4: 0.4}
EVALUATED: dict[str, Any] = {
    "steps": 4, "keep_checkpoints": 1, "evaluation": {"prompts": LINES[:2], "images_per_prompt": 2, "every": 1},
}  # fmt: skip


def test_the_best_checkpoint_is_kept_beside_the_newest(tmp_path: Path) -> None:
    """The step with the best evaluation, not counting the base's; whenever one becomes the best it is said."""
    _, events, _ = train(make_spec(**EVALUATED), tmp_path, Judged(JUDGED))
    best = [data for kind, data in events if kind == "best"]
    assert best == [{"step": step, "score": "bright", "value": JUDGED[step]} for step in (1, 2)]
    assert sorted(path.name for path in tmp_path.glob("*checkpoint*")) == ["checkpoint-2", "checkpoint-4"]


def test_a_best_by_that_no_score_has_is_refused(tmp_path: Path) -> None:
    """With the names there are, after the first evaluation and before any training; parts of a reward that is away
    may come with it."""

    def away(prompt: str, images: np.ndarray, metadata: Any) -> list[float]:
        raise RuntimeError("gone")

    def parts(prompt: str, images: np.ndarray, metadata: Any) -> RewardResult:
        return RewardResult(
            scores=tuple(brightness(prompt, images, metadata)), sub_scores={"half": (0.5,) * len(images)}
        )

    def run(best_by: str, name: str, scorer: Any = parts) -> None:
        evaluation = {"prompts": LINES[:1], "images_per_prompt": 2, "best_by": best_by}
        rewards = [{"name": "bright"}, {"name": "judge", "weight": 0, "required": False}]
        spec = make_spec(steps=1, evaluation=evaluation, rewards=rewards)
        rank = InProcessRanker({"bright": brightness, "judge": scorer}, spec.rewards)
        train(spec, tmp_path / name, rank)

    with pytest.raises(InvalidInput, match=r"there are bright, judge, judge\.half") as refused:
        run("nonsense", "refused")
    assert refused.value.field == "evaluation.best_by"
    assert job_layout.checkpoint_steps(tmp_path / "refused") == []
    run("judge.half", "a part")
    run("judge.half", "away", away)


@pytest.mark.parametrize("step", [0, 2])
def test_an_evaluation_that_nobody_heard_of_is_said_again(tmp_path: Path, step: int) -> None:
    """Whoever dies between its file and its events: the next run says samples, figures, and whether it is the best."""

    class Died(Exception):
        pass

    def dies(kind: str, data: Any) -> None:
        if (kind, data.get("step")) == ("samples", step):
            raise Died

    spec = make_spec(**EVALUATED, samples={"prompts": 2})
    with pytest.raises(Died):
        session.run_session(
            spec, job_id="job", workdir=tmp_path, models_dir=tmp_path, ranker=Judged(JUDGED), on_event=dies,
            control=lambda: "run",
        )  # fmt: skip
    _, events, _ = train(spec, tmp_path, Judged(JUDGED))
    for kind in ("samples", "evaluation"):
        assert [data["step"] for each, data in events if each == kind] == list(range(step, 5))
    said = next(data for kind, data in events if kind == "evaluation")
    assert said["scores"]["bright"]["mean"] == JUDGED[step]
    assert said["path"] == f"evaluation/step-{step}.json"
    assert ("best", {"step": 2, "score": "bright", "value": 0.8}) in events
    json.dumps(said, allow_nan=False)


def test_sub_scores_reach_the_evaluation(tmp_path: Path) -> None:
    def parts(prompt: str, images: np.ndarray, metadata: Any) -> RewardResult:
        return RewardResult(
            scores=tuple(brightness(prompt, images, metadata)), sub_scores={"half": (0.5,) * len(images)}
        )

    spec = make_spec(steps=1, evaluation={"prompts": LINES[:2], "images_per_prompt": 2})
    _, events, _ = train(spec, tmp_path, InProcessRanker({"bright": parts}, spec.rewards))
    assert next(data for kind, data in events if kind == "evaluation")["scores"]["bright.half"]["mean"] == 0.5


def test_group_ids_and_seeds_are_functions_of_the_step(tmp_path: Path) -> None:
    """A resumed run asks exactly the same questions."""
    seen: list[CandidateGroup] = []

    class Recording(InProcessRanker):
        def submit(self, group: CandidateGroup) -> None:
            seen.append(group)
            super().submit(group)

    for name in ("a", "b"):
        train(make_spec(steps=1), tmp_path / name, Recording({"bright": brightness}, make_spec().rewards))
    assert [(group.id, group.seeds) for group in seen[:2]] == [(group.id, group.seeds) for group in seen[2:]]
    assert all((one.images == other.images).all() for one, other in zip(seen[:2], seen[2:], strict=True))


def test_an_unverified_reward_is_said_once_and_in_the_model_card(tmp_path: Path) -> None:
    """Each run tells of each, with its model; not again when it is resumed; the export's card names it at the end."""

    def unverified(prompt: str, images: np.ndarray, metadata: Any) -> RewardResult:
        return RewardResult(scores=tuple(brightness(prompt, images, metadata)), verified=False)

    spec = make_spec(rewards=[{"name": "bright"}, {"name": "watched", "weight": 0}])

    def ranker() -> InProcessRanker:
        return InProcessRanker({"bright": unverified, "watched": brightness}, spec.rewards)

    first: list[Any] = []

    def pause_after_a_step() -> str:
        return "pause" if any(kind == "step" for kind, _ in first) else "run"

    _, _, outcome = train(spec, tmp_path, ranker(), control=pause_after_a_step, events=first)
    assert outcome == "paused"
    _, rest, _ = train(spec, tmp_path, ranker())
    told = [data for kind, data in first + rest if kind == "reward_unverified"]
    assert told == [{"reward": "bright", "model": "bright", "revision": ""}]
    assert [kind for kind, _ in first].count("reward_unverified") == 1
    card = (tmp_path / "export/README.md").read_text()
    (line,) = [line for line in card.splitlines() if line.startswith("| unverified |")]
    assert "bright (bright at )" in line
    assert "watched" not in line
