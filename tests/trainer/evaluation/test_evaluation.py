"""Figures of an evaluation, against independent computations and hand-made cases."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dipole_trainer import features, generators
from dipole_trainer.comparison.comparison import Comparison
from dipole_trainer.comparison.model_loader import ModelLoader
from dipole_trainer.compute.micro_batches import MicroBatches
from dipole_trainer.distributed.group import ProcessGroup
from dipole_trainer.evaluation.results import ScoredPrompt, read_results, write_results
from dipole_trainer.evaluation.schedule import EvaluationSchedule
from dipole_trainer.evaluation.scoring import MAX_BATCH_IMAGES, mean_pairwise_distance, vendi_score
from dipole_trainer.evaluation.statistics import (
    estimate_mean,
    mean_score_per_prompt,
    reward_hacking,
    significant_sign,
    summarize_scores,
)
from dipole_trainer.features import FeatureExtractor
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.ranking.in_process import InProcessRanker
from dipole_trainer.registry.model_names import ModelRef
from dipole_trainer.spec import FeaturesSpec, TrainSpec

NOWHERE = Path("nowhere")


def scored(
    values: list[list[float | None]], name: str = "r", tag: str = "t", diversity: float = 1.0
) -> list[ScoredPrompt]:
    return [ScoredPrompt(f"prompt {i}", tag, {name: row}, diversity, diversity) for i, row in enumerate(values)]


def test_interval_is_over_prompts_not_images() -> None:
    """Copies of the same images do not make the interval narrower."""
    few = estimate_mean(mean_score_per_prompt(scored([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]), "r"))
    many = estimate_mean(mean_score_per_prompt(scored([[0.0, 1.0] * 50, [1.0] * 100, [0.0] * 100]), "r"))
    assert few == many
    assert few is not None
    assert few.high is not None
    half = 4.302653 * np.std([0.5, 1.0, 0.0], ddof=1) / math.sqrt(3)  # Student's t, two degrees of freedom
    assert (few.mean, few.high - few.mean) == pytest.approx((0.5, half))


def test_prompts_without_a_score_are_left_out_and_counted() -> None:
    found = estimate_mean(mean_score_per_prompt(scored([[None, None], [1.0, None], [0.0, 0.0]]), "r"))
    assert found is not None
    assert (found.mean, found.prompts) == (0.5, 2)


def test_one_prompt_has_no_interval() -> None:
    """And so no certainty: nothing is called hacking on one prompt. The file stays JSON."""
    figures = summarize_scores(scored([[1.0]]), scored([[0.0]]))
    assert figures["scores"]["r"]["difference"] == {"mean": 1.0, "low": None, "high": None, "prompts": 1}
    assert reward_hacking(figures, {"r": 1.0}, ["r"]) is None
    json.dumps(figures, allow_nan=False)


def test_difference_is_paired() -> None:
    """A constant gain over very different prompts has an interval of no width."""
    base = scored([[0.0], [0.5], [0.9]])
    figures = summarize_scores(scored([[0.1], [0.6], [1.0]]), base)
    difference = figures["scores"]["r"]["difference"]
    assert difference["mean"] == pytest.approx(0.1)
    assert difference["high"] - difference["low"] == pytest.approx(0)
    assert figures["by_tag"]["t"]["r"]["difference"]["prompts"] == 3


def test_a_difference_is_of_the_noises_that_both_have() -> None:
    """A model whose worst image was not scored is not better for that."""
    base = scored([[0.2, 0.8], [0.1, 0.1]])
    figure = summarize_scores(scored([[None, 0.8], [0.2, None]]), base)["scores"]["r"]
    assert figure["difference"]["mean"] == pytest.approx((0.0 + 0.1) / 2)
    assert (figure["scored"], figure["images"]) == (2, 4)


def test_win_rate_is_of_the_same_noises_with_ties_as_halves() -> None:
    """Each prompt's share of noises on which it scores higher counts once, however many noises it has left."""
    base = scored([[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, None, 1.0], [None, None, 1.0, 1.0]])
    ours = scored([[1.0, 1.0, 1.0, 0.0], [0.0, 1.0, 5.0, None], [9.0, 9.0, None, None]])
    rate = summarize_scores(ours, base)["scores"]["r"]["win_rate"]
    assert rate["mean"] == pytest.approx((3.5 / 4 + 0.5 / 2) / 2)  # the third prompt has no pair
    assert rate["prompts"] == 2
    assert (rate["low"], rate["high"]) == (0.0, 1.0)  # two prompts tell little, and a share has bounds
    assert summarize_scores(ours, None)["scores"]["r"].keys() == {"mean", "low", "high", "prompts", "scored", "images"}


def test_win_rates_of_two_models_against_each_other_add_up_to_one() -> None:
    rng = np.random.default_rng(0)
    one, other = (scored(rng.integers(0, 4, (20, 4)).astype(float).tolist()) for _ in range(2))
    rates = [summarize_scores(a, b)["scores"]["r"]["win_rate"]["mean"] for a, b in ((one, other), (other, one))]
    assert sum(rates) == pytest.approx(1)


def test_diversity_has_a_paired_difference() -> None:
    base = [ScoredPrompt(f"p{i}", "", {}, 1.0 + i, 2.0 + i) for i in range(3)]
    ours = [ScoredPrompt(f"p{i}", "", {}, 0.5 + i, None) for i in range(3)]
    found = summarize_scores(ours, base)
    distance = found["diversities"]["distance"]
    assert distance["difference"] == {"mean": -0.5, "low": -0.5, "high": -0.5, "prompts": 3}
    assert found["diversity"] == distance["mean"] == 1.5
    assert found["diversity_ratio"] == 0.75
    assert found["diversities"]["Vendi"] == {}, "a file of an earlier version has none"


def test_hacking_needs_a_sure_rise_and_a_sure_fall() -> None:
    def figures(trained: tuple[float, float], held: tuple[float, float]) -> dict[str, object]:
        parts = {"good": trained, "held": held}
        return {
            "scores": {
                name: {"difference": {"mean": (low + high) / 2, "low": low, "high": high, "prompts": 6}}
                for name, (low, high) in parts.items()
            }
        }

    found = reward_hacking(figures((0.1, 0.2), (-0.3, -0.1)), {"good": 1.0}, ["held"])
    assert found is not None
    assert found["fallen"] == {"held": pytest.approx(-0.2)}
    assert reward_hacking(figures((0.1, 0.2), (-0.3, 0.1)), {"good": 1.0}, ["held"]) is None
    assert reward_hacking(figures((-0.1, 0.2), (-0.3, -0.1)), {"good": 1.0}, ["held"]) is None
    assert reward_hacking(figures((0.1, 0.2), (-0.3, -0.1)), {"good": 1.0}, ["absent"]) is None
    assert reward_hacking(figures((-0.2, -0.1), (-0.3, -0.1)), {"good": -1.0}, ["held"]) is not None, "it was to fall"
    assert reward_hacking(figures((0.1, 0.2), (-0.3, -0.1)), {"good": -1.0}, ["held"]) is None


@pytest.mark.parametrize(("drop", "is_told"), [(0.03, False), (0.3, True)])
def test_a_fall_that_is_sure_and_small_is_no_hacking(drop: float, is_told: bool) -> None:
    """With the same noises any shift is sure; what counts is how it compares with the spread of a prompt's images."""
    held = [[0.0, 1.0, 2.0] for _ in range(6)]  # a spread of 1
    base, ours = (
        [
            ScoredPrompt(f"p{i}", "", {"good": [good] * 3, "held": [x - by for x in row]}, 1.0, 1.0)
            for i, row in enumerate(held)
        ]
        for good, by in ((0.0, 0.0), (1.0, drop))
    )
    found = summarize_scores(ours, base)
    assert found["scores"]["held"]["difference"]["spreads"] == pytest.approx(-drop)
    assert significant_sign(found["scores"]["held"]["difference"]) == -1
    assert (reward_hacking(found, {"good": 1.0}, ["held"]) is not None) == is_told


def test_a_fall_since_a_narrower_step_is_measured_by_the_base() -> None:
    """The best step's own spread is a tenth of the base's: what is much in its eyes is little."""
    base, best, now = (
        [ScoredPrompt(f"p{i}", "", {"held": [low + middle, middle, high + middle]}, 1.0, 1.0) for i in range(6)]
        for low, middle, high in ((-1.0, 1.0, 1.0), (-0.1, 1.0, 0.1), (-0.1, 0.95, 0.1))
    )
    (own,), (told,) = (
        [summarize_scores(now, best, spread_of=of)["scores"]["held"]["difference"]["spreads"]] for of in (None, base)
    )
    assert (own, told) == (pytest.approx(-0.5), pytest.approx(-0.05))


def test_the_spread_of_single_images_is_that_over_prompts() -> None:
    base, ours = scored([[0.0], [1.0], [2.0]]), scored([[-0.5], [0.5], [1.5]])
    assert summarize_scores(ours, base)["scores"]["r"]["difference"]["spreads"] == pytest.approx(-0.5)


def test_a_sure_fall_of_diversity_is_hacking_too() -> None:
    """The trained reward rose on every prompt and the images of each prompt became alike."""
    rows, better = [[0.0], [0.1], [0.2]] * 2, [[0.5], [0.6], [0.8]] * 2
    base, ours = scored(rows, diversity=3.0), scored(better, diversity=1.5)
    found = reward_hacking(summarize_scores(ours, base), {"r": 1.0}, [], than="tiny-turbo")
    assert found is not None
    assert found["fallen"] == {"diversity (distance)": -1.5, "diversity (Vendi)": -1.5}
    assert found["what"].startswith("against tiny-turbo r +0.533, while diversity (distance) -1.500")
    assert reward_hacking(summarize_scores(ours, base), {}, []) is None, "nothing was trained"
    assert reward_hacking(summarize_scores(scored(better, diversity=3.0), base), {"r": 1.0}, []) is None
    assert reward_hacking(summarize_scores(scored(better, diversity=2.9), base), {"r": 1.0}, []) is None, (
        "by 3 %, sure or not"
    )


def test_a_handful_of_prompts_is_sure_of_nothing() -> None:
    """Equal scores have an interval of no width, however few; five of one sign come by chance once in sixteen times."""
    for count, sign in ((2, 0), (5, 0), (6, 1)):
        difference = summarize_scores(scored([[0.5]] * count), scored([[0.25]] * count))["scores"]["r"]["difference"]
        assert difference["low"] == difference["high"] == 0.25
        assert significant_sign(difference) == sign


def test_spread_is_the_mean_distance_between_samples() -> None:
    points = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    assert mean_pairwise_distance({"a": points[:, None]}) == pytest.approx((5 + 5 + 0) / 3)
    assert mean_pairwise_distance({"a": points[:1, None]}) is None


def test_vendi_counts_different_samples() -> None:
    """n identical samples are one, n orthogonal ones n, two pairs of twins two; a single sample tells nothing."""
    assert vendi_score({"a": torch.ones(4, 2, 5)}) == pytest.approx(1)
    assert vendi_score({"a": torch.eye(5)[:, None]}) == pytest.approx(5)
    assert vendi_score({"a": torch.eye(2).repeat_interleave(2, 0)[:, None]}) == pytest.approx(2)
    assert vendi_score({"a": torch.ones(1, 1, 3)}) is None


def test_vendi_of_two_samples_at_an_angle() -> None:
    """cos 60° gives the eigenvalues 3/4 and 1/4; length does not matter, and keys are averaged in the kernel."""
    angle = torch.tensor([[2.0, 0.0], [1.5, 1.5 * math.sqrt(3)]])[:, None]
    by_hand = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert vendi_score({"a": angle}) == pytest.approx(by_hand)
    identical_and_orthogonal = {"a": torch.ones(2, 1, 3), "b": torch.eye(2)[:, None]}  # cosines 1 and 0: 0.5 together
    assert vendi_score(identical_and_orthogonal) == pytest.approx(by_hand)


def test_files_say_everything_again(tmp_path: Path) -> None:
    items = scored([[0.5, None]])
    path = write_results(tmp_path / "evaluation/step-3.json", 3, items, summarize_scores(items, None))
    assert read_results(path) == items
    assert json.loads(path.read_text())["step"] == 3


# ---- memory ---------------------------------------------------------------------------------------------------------


SPEC = TrainSpec.model_validate({
    "prompts": [{"prompt": "a red circle"}], "rewards": [{"name": "bright"}],
    "evaluation": {"prompts": [{"prompt": "a red circle"}, {"prompt": "a blue square"}], "images_per_prompt": 4},
})  # fmt: skip


def bright() -> InProcessRanker:
    return InProcessRanker({"bright": lambda prompt, images, metadata: images.mean((1, 2, 3)).tolist()})


class Tight:
    """φ where no more than two samples fit into memory."""

    def __init__(self, phi: FeatureExtractor) -> None:
        self.phi = phi

    def __call__(self, x: Tensor, *, prompt: str, seeds: Sequence[int]) -> dict[str, Tensor]:
        if len(x) > 2:
            raise torch.OutOfMemoryError("too many at once")
        return self.phi(x, prompt=prompt, seeds=seeds)


def built() -> tuple[OneStepGenerator, FeatureExtractor]:
    generator = generators.build_generator(SPEC, models_dir=NOWHERE)
    return generator, features.build_features(FeaturesSpec(), generator, models_dir=NOWHERE)


def test_an_evaluation_keeps_to_the_pieces_of_its_run(tmp_path: Path) -> None:
    """So many are drawn, decoded and given to φ at once; what memory taught is said, and holds for the next."""
    generator, phi = built()
    drawn: list[int] = []
    for network in (generator.denoiser.conv_in, generator.vae.decoder):
        network.register_forward_pre_hook(lambda module, inputs: drawn.append(len(inputs[0])))
    halved: list[int] = []
    chunks, ranker, world = MicroBatches(4, halved.append), bright(), ProcessGroup("cpu")

    def evaluated(phi: FeatureExtractor, chunks: MicroBatches, folder: Path, step: int) -> list[ScoredPrompt]:
        evaluations = EvaluationSchedule(SPEC, generator, phi, chunks, ranker, lambda kind, data: None, folder, "job")
        evaluations.evaluate_step(step, lambda: None, world)
        return read_results(folder / f"evaluation/step-{step}.json")

    evaluated(Tight(phi), chunks, tmp_path, 0)
    assert (max(drawn), halved) == (4, [2])
    drawn.clear()
    pieces = evaluated(Tight(phi), chunks, tmp_path, SPEC.steps)
    assert (max(drawn), halved) == (2, [2])
    at_once = evaluated(phi, MicroBatches(MAX_BATCH_IMAGES), tmp_path / "whole", 0)
    assert max(drawn) == 8
    ranker.close()
    for one, other in zip(pieces, at_once, strict=True):
        assert one.scores["bright"] == pytest.approx(other.scores["bright"], abs=0.1)
        assert (one.diversity, one.vendi) == pytest.approx((other.diversity, other.vendi), rel=1e-4)


class TightBench(ModelLoader):
    """Its φ has no room for three."""

    @contextmanager
    def loaded(self, model: ModelRef) -> Iterator[tuple[OneStepGenerator, FeatureExtractor]]:
        with super().loaded(model) as (generator, phi):
            yield generator, Tight(phi)


def test_a_comparison_that_runs_out_of_memory_says_so() -> None:
    """Once for all models, and it goes on with fewer images at once."""
    models = [ModelRef(name, name, {"model": "tiny-turbo"}) for name in ("one", "other")]
    bench: Any = TightBench(models, FeaturesSpec(), models_dir=NOWHERE, device="cpu")
    bench.check_models()
    # whole numbers: how many images were worked on at once moves a mean by rounding, which is no preference
    ranker = InProcessRanker({"bright": lambda prompt, images, metadata: images.mean((1, 2, 3)).round().tolist()})
    report, _ = Comparison(bench, SPEC.evaluation, (), ranker).run()
    ranker.close()
    assert report["notes"] == ["memory ran out, so that in the end 2 images were worked on at once"]
    assert report["models"][1]["figures"]["scores"]["bright"]["win_rate"]["mean"] == 0.5
