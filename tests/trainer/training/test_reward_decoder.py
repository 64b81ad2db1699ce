"""Jobs whose rewards see a tiny decoder's images: which are its, how far they rank alike, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from dipole.errors import InvalidInput
from dipole.tiny.world import all_prompts
from dipole_rewards.rewards.colourfulness import Colourfulness
from dipole_trainer.generators import tiny_pipelines
from dipole_trainer.generators.images import vae
from dipole_trainer.generators.one_step import TINY_TURBO, OneStepGenerator
from dipole_trainer.ranking.groups import CandidateGroup
from dipole_trainer.ranking.in_process import InProcessRanker
from dipole_trainer.spec import TrainSpec
from dipole_trainer.training import session
from dipole_trainer.weights.reward_decoder import locate_tiny_decoder

LINES = [{"prompt": prompt.text, "metadata": prompt.metadata} for prompt in all_prompts(held_out=False)[:6]]


def make_spec(**changes: Any) -> TrainSpec:
    base: dict[str, Any] = {
        "prompts": LINES, "steps": 2, "candidates": 8, "prompts_per_step": 2, "chunk_size": 8,
        "rewards": [{"name": "colourfulness"}], "samples": {"prompts": 0}, "reward_decoder": "tiny",
        "check_decoder_every": 3,
    }  # fmt: skip
    return TrainSpec.model_validate({**base, **changes})


class Asked(InProcessRanker):
    """Notes the groups that rewards are asked about."""

    def __init__(self, spec: TrainSpec) -> None:
        reward, self.groups = Colourfulness(), dict[str, CandidateGroup]()
        super().__init__(
            {
                "colourfulness": lambda prompt, images, metadata: (
                    reward.score(prompt=prompt, images=list(images), metadata=metadata).scores
                )
            },
            spec.rewards,
        )

    def submit(self, group: CandidateGroup) -> None:
        self.groups[group.id] = group
        super().submit(group)


def run(spec: TrainSpec, folder: Path, ranker: InProcessRanker) -> list[tuple[str, dict[str, Any]]]:
    events: list[tuple[str, dict[str, Any]]] = []
    session.run_session(
        spec, job_id="job", workdir=folder, models_dir=folder, ranker=ranker, control=lambda: "run",
        on_event=lambda kind, data: events.append((kind, data)),
    )  # fmt: skip
    return events


def test_every_third_group_is_ranked_on_both(tmp_path: Path) -> None:
    """Groups 0 and 3 of the run. Their agreement is an event and a figure of their step; others cost one ranking."""
    ranker = Asked(spec := make_spec())
    events = run(spec, tmp_path, ranker)
    assert sorted(ranker.groups) == ["job.0.0", "job.0.0.tiny", "job.0.1", "job.1.0", "job.1.1", "job.1.1.tiny"]
    checked = [data for kind, data in events if kind == "decoder_checked"]
    steps = [data for kind, data in events if kind == "step"]
    assert [data["step"] for data in checked] == [0, 1]
    assert [step["decoder_tau"] for step in steps] == pytest.approx([data["tau"] for data in checked], abs=1e-4)
    assert all(-1 <= data["tau"] <= 1 and 0 <= data["overlap"] <= 1 for data in checked)
    exact, tiny = (np.asarray(ranker.groups[name].images).astype(int) for name in ("job.0.0", "job.0.0.tiny"))
    assert 0 < np.abs(exact - tiny).mean() < 8


def test_the_package_s_decoder_draws_what_the_vae_draws() -> None:
    """In a tenth of the weights of the VAE's own, at most, and nearly the same levels."""
    generator = OneStepGenerator.load(TINY_TURBO, make_spec())
    tiny = vae.load_tiny_decoder(locate_tiny_decoder("tiny", Path()), generator.vae.dtype, generator.device)
    x = generator.draw_reference(generator.draw_noise(range(8)), "two red circles")
    ours, theirs = (vae.decode_pixels(each, x).clamp(0, 1) for each in (tiny, generator.vae))
    assert float((ours - theirs).abs().mean()) * 255 < 8
    sizes = [sum(each.numel() for each in decoder.parameters()) for decoder in (tiny.decoder, generator.vae.decoder)]
    assert sizes[0] < sizes[1] / 5


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"candidates_as": "latents"}, "reward_decoder"),
        ({"reward_decoder": "vae"}, "check_decoder_every"),
        ({"prompts": [], "rewards": [], "pairs_file": "file-1"}, "reward_decoder"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises((InvalidInput, ValidationError), match=field):
        make_spec(**changes)


def test_a_decoder_that_is_not_here_is_said_with_how_to_fetch_it(tmp_path: Path) -> None:
    """Of SD's kind it is TAESD, in the models folder or the hub's cache."""
    with pytest.raises(InvalidInput, match=r"reward_decoder: .*`dipole models fetch taesd --to "):
        locate_tiny_decoder("sd", tmp_path)


def test_a_model_of_a_kind_without_a_tiny_decoder_is_told_so(tmp_path: Path) -> None:
    """Before anything of SANA is loaded."""
    tiny_pipelines.write_pipeline(tmp_path / "sprint", "sana")
    spec = make_spec(model="sprint", features={"type": "latents"})
    with pytest.raises(InvalidInput, match="no tiny decoder for models of the kind sana") as refused:
        run(spec, tmp_path, Asked(spec))
    assert refused.value.field == "reward_decoder"
