"""A report says what its job's files say, as text, in one bounded file; its request makes the same job again."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dipole_trainer.api.job_requests import JobRequest
from dipole_trainer.evaluation import curves, results, statistics
from dipole_trainer.evaluation.results import ScoredPrompt
from dipole_trainer.jobs.job_record import AnsweringReward, JobRecord, JobWarning, fold_warnings
from dipole_trainer.reports import gallery, report, vector_curves
from dipole_trainer.spec import TrainSpec
from dipole_trainer.storage import job_layout
from dipole_trainer.storage.metrics_log import MetricsLog

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}'
PROMPTS = [{"prompt": f"{HOSTILE} {index}", "metadata": {"tag": HOSTILE}} for index in range(12)]
RECORD = JobRecord(
    job_id="ftjob-1", summary={"suffix": "mine", "metadata": {HOSTILE: HOSTILE}},
    files={"training_file": ("file-1", HOSTILE)}, created_at=1e9, started_at=1e9, written_at=1e9 + 3725,
    warnings=[JobWarning("reward_failure", HOSTILE, 3)], more_warnings=0,
    answers=[AnsweringReward("good", HOSTILE, "r1", "1"), AnsweringReward("held", "m", "r2", "1")], best=None,
)  # fmt: skip


def make_spec(**changes: Any) -> TrainSpec:
    base: dict[str, Any] = {
        "model": "tiny-turbo", "prompts": [{"prompt": "a"}, {"prompt": "b"}], "steps": 5, "candidates": 6,
        "rewards": [{"name": "good", "weight": 0.5}, {"name": "held", "weight": 0}], "seed": 7,
        "method": {"type": "drpo", "drpo": {"positives": 2, "negatives": 2}}, "precision": "fp32",
        "evaluation": {"prompts": PROMPTS, "images_per_prompt": 4}, "lora": {"rank": 4, "alpha": 4},
    }  # fmt: skip
    return TrainSpec.model_validate({**base, **changes})


def fill_workdir(folder: Path, steps: tuple[int, ...], side: int = 16) -> None:
    """Updates, and pictures and an evaluation of every prompt at each of `steps`, on noise that does not compress."""
    rng, before = np.random.default_rng(0), None
    log, seconds = MetricsLog(folder), {"generate": 1, "wait": 2, "update": 3}
    for step in range(1, steps[-1] + 1):
        log.append_step({"step": step, "loss": 1 / step, "rewards": {"good": 0.5}, "spread": {"good": 0.1},
                         "skipped": 1, "images_per_s": 3.0, "seconds": seconds})  # fmt: skip
    for step in steps:
        scored = [
            ScoredPrompt(
                each["prompt"], HOSTILE,
                {"good": list(rng.random(4) + step), "good.strict": [1.0, 0.0, 1.0, None], "held": list(rng.random(4))},
                diversity=float(rng.random()), vendi=2.0,
            )
            for each in PROMPTS
        ]  # fmt: skip
        figures = statistics.summarize_scores(scored, before)
        results.write_results(folder / job_layout.evaluation_file(step), step, scored, figures)
        results.write_results(
            folder / job_layout.sample_figures_file(step), step, scored, {"of": "held_out", **figures}
        )
        sheet = [rng.integers(0, 256, (4, side, side, 3), np.uint8) for _ in PROMPTS]
        results.write_sample_sheet(folder, step, sheet, [each["prompt"] for each in PROMPTS])
        before = before or scored


def texts_of(page: str) -> str:
    return unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("job")
    fill_workdir(folder, (0, 2, 5))
    (folder / job_layout.UNVERIFIED_REWARDS_FILE).write_text(json.dumps({"held": "m at r2"}))
    path = report.write_report(folder, make_spec(), RECORD, status="failed", error=HOSTILE)
    assert path == folder / "export/report.html"
    assert {each.name for each in path.parent.iterdir()} == {"report.html", "samples.png", "curves.png"}
    return path.read_text()


def test_what_strangers_wrote_is_text(page: str) -> None:
    """Prompts, categories, notes, names of files, what endpoints say, and the error."""
    assert "<script" not in page
    assert not re.search(r"<img[^>]*onerror", page)
    assert texts_of(page).count("<script>alert(1)</script>") >= 12 + 5
    assert "49" not in page.partition("</style>")[2].partition("<svg")[0], "no template runs in a text"
    assert f'content="{report.CONTENT_SECURITY_POLICY}"' in unescape(page)
    assert re.findall(r'(?:src|href)="(?!data:image/webp|#)([^"]*)', page) == []


def test_the_figures_are_those_of_the_files(page: str) -> None:
    """The trained reward surely rose by the steps it was given; the held-out one is marked so, and unverified."""
    said = " ".join(texts_of(page).split())
    assert "DrPO trained tiny-turbo for 5 updates on good." in said
    assert "good (trained, weight 0.5) rose from" in said
    assert "held (held out) did not surely change" in said
    assert "The job failed: this is what there was until then." in said
    assert "(3 times)" in said
    assert "held held out m r2 1 unverified" in said
    assert "7 of the training, 1234 of the evaluation's noises" in said
    assert "5 of 40" in said, "groups that were skipped"
    assert "1 h 2 min" in said
    titles = re.findall(r"<figcaption><h3>(.*?)</h3>", page)
    assert titles == [
        "good", "held", "Rewards against the base", "Diversity", "Spread within a group", "Loss", "Rate",
        "Time by phase",
    ]  # fmt: skip
    for title, names in {"good": ["base, held-out prompts", "held-out prompts, ± 95 %", "update", "score"],
                         "Diversity": ["distance", "Vendi", "base"]}.items():  # fmt: skip
        chart = page.partition(f"<h3>{title}</h3>")[2].partition("</figure>")[0]
        assert all(f">{name}</text>" in chart for name in names), title


def test_a_tiny_decoder_s_agreement_is_a_chart_of_runs_that_have_one() -> None:
    update = {"step": 1, "rewards": {}, "spread": {}, "seconds": {}}
    checked = {**update, "decoder_tau": 0.9, "decoder_overlap": 0.75}
    *others, chart = vector_curves.draw_charts(curves.Run([update, checked], [], set()))
    assert chart.title == "Tiny decoder against the VAE"
    assert ">Kendall's τ</text>" in unescape(chart.svg)
    assert [each.title for each in vector_curves.draw_charts(curves.Run([update], [], set()))] == [
        each.title for each in others
    ]


def test_the_gallery_has_the_base_beside_each_step_and_explains_its_borders(page: str) -> None:
    images = re.findall(r'<img src="data:image/webp;base64,[^"]+" alt="([^"]*)" title="seed \d+" class="(\w+)"', page)
    assert len(images) == 12 * 4 * 3
    assert images[:3] == [("base, noise 1: right", "right"), ("step 2, noise 1: right", "right"),
                          ("step 5 (last), noise 1: right", "right")]  # fmt: skip
    assert images[3][1] == "wrong"
    assert images[9][1] == "unjudged"
    assert "right by good.strict (solid, green)" in page
    assert "wrong by good.strict (dashed, red)" in page


def test_a_report_is_bounded(tmp_path: Path) -> None:
    """Of large images only as many prompts are shown as there is room for, and the page says how many."""
    fill_workdir(tmp_path, (0, 1, 2), side=192)
    path = report.write_report(tmp_path, make_spec(), RECORD, status="succeeded")
    assert path is not None
    assert path.stat().st_size < report.MAX_BYTES
    shown = path.read_text().count('<section class="card" aria-label=')
    assert 0 < shown < 12
    assert f"The first {shown} of 12 prompts" in path.read_text()


@pytest.mark.parametrize("files", [{}, {"training_file": ("file-1", "p.jsonl"), "validation_file": ("file-2", "")}])
def test_its_request_makes_the_same_job(files: dict[str, Any]) -> None:
    spec = make_spec(
        max_staleness=1, optimizer={"lr": 2e-4}, features={"type": "tiny_contrastive"}, samples={"every": 2}
    )
    request = report.build_request(spec, replace(RECORD, files=files))
    body = json.loads(request["json"])
    assert body["suffix"] == "mine"
    assert request["remark"] == ""
    made = JobRequest.model_validate({"prompts": [{"prompt": "a"}, {"prompt": "b"}], **body}).model_dump()
    wanted = spec.model_dump()
    if files:
        assert (body["training_file"], body["validation_file"]) == ("file-1", "file-2")
        del made["evaluation"]["prompts"], wanted["evaluation"]["prompts"]
    assert {name: made[name] for name in wanted} == wanted


def test_a_job_that_has_shown_nothing_has_no_report(tmp_path: Path) -> None:
    for status in ("failed", "cancelled", "succeeded"):
        assert report.write_report(tmp_path, make_spec(), RECORD, status=status) is None
    assert list(tmp_path.iterdir()) == []


def test_columns_are_the_base_the_last_the_best_and_some_between() -> None:
    assert gallery.choose_steps([0, 4], None) == [0, 4]
    assert gallery.choose_steps(range(0, 101, 10), 20) == [0, 20, 30, 60, 80, 100]
    assert gallery.choose_steps([0], 7) == [0]


def test_hacking_is_told_once_and_first() -> None:
    """Its figures differ at every evaluation; the newest stands for all. What failed the job is no warning."""
    found = [JobWarning("skipped_group", "s", 2), JobWarning("reward_hacking", "new", 1),
             JobWarning("reward_hacking", "old", 4), JobWarning("failed", "f", 1)]  # fmt: skip
    assert fold_warnings(found) == [JobWarning("reward_hacking", "new", 5), JobWarning("skipped_group", "s", 2)]
