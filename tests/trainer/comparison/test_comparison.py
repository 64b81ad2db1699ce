"""`dipole eval`: names of models, the same noises for all, failing rewards, the table, and all of it in processes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import SecretStr

from dipole.client.endpoint import Endpoint
from dipole.errors import ConfigurationError, InvalidInput, RewardUnavailable
from dipole.settings import PlatformSettings
from dipole.tiny.job import build_demo_prompts
from dipole_trainer import generators
from dipole_trainer.api import schemas
from dipole_trainer.checkpoints import resume_state
from dipole_trainer.comparison import comparison, inputs, table
from dipole_trainer.comparison.model_loader import ModelLoader
from dipole_trainer.database.engine import Database, upgrade_database
from dipole_trainer.evaluation.results import ScoredPrompt
from dipole_trainer.evaluation.scoring import score_prompts
from dipole_trainer.generators.tiny_pipelines import write_pipeline as write_pipeline
from dipole_trainer.jobs.store import JobStore
from dipole_trainer.ranking.celery_ranker import ResolvedReward
from dipole_trainer.ranking.groups import RewardResult
from dipole_trainer.ranking.in_process import InProcessRanker
from dipole_trainer.registry.files import FileRegistry
from dipole_trainer.registry.model_names import ModelRef, ModelResolver, fine_tuned_name
from dipole_trainer.registry.rewards import RewardRegistry
from dipole_trainer.spec import EvalSpec, FeaturesSpec, PromptSpec, RewardSpec, TrainSpec
from dipole_trainer.storage import job_layout
from dipole_trainer.storage.artifacts import ArtifactStore
from dipole_trainer.training import session

LINES = build_demo_prompts(held_out=True)[:8]
STEPS = 2


def brightness(prompt: str, images: np.ndarray, metadata: Any) -> list[float]:
    return [float(value) for value in images.astype(np.float64).mean((1, 2, 3))]


@dataclasses.dataclass
class Platform:
    """A platform's stores, with one job that was really trained and has checkpoints of steps 1 and 2."""

    settings: PlatformSettings
    store: JobStore
    job: str = ""

    @property
    def artifacts(self) -> ArtifactStore:
        return ArtifactStore(self.settings.artifacts_url, self.settings.home / "work")

    def find(self, *names: str) -> list[ModelRef]:
        scratch = self.settings.home / "work/eval"
        shutil.rmtree(scratch, ignore_errors=True)
        return ModelResolver(self.store, self.artifacts, self.settings.models_dir, scratch).resolve_models(names)

    def bench(self, *names: str, **options: Any) -> ModelLoader:
        spec = FeaturesSpec(type=options.pop("features", "auto"))
        return ModelLoader(self.find(*names), spec, models_dir=self.settings.models_dir, **{"device": "cpu", **options})


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    home = tmp_path_factory.mktemp("platform")
    settings = PlatformSettings(
        home=home,
        database_url=f"sqlite:///{home}/jobs.db",
        artifacts_url=str(home / "artifacts"),
        models_dir=home / "m",
    )
    upgrade_database(settings.database_url)
    store = JobStore(Database(settings.database_url))
    spec = TrainSpec.model_validate({
        "prompts": LINES[:2], "rewards": [{"name": "bright"}, {"name": "shapes", "weight": 0}], "steps": STEPS,
        "candidates": 4, "prompts_per_step": 2, "method": {"drpo": {"positives": 2, "negatives": 2}},
        "lora": {"rank": 4, "alpha": 8}, "optimizer": {"lr": 3e-3}, "checkpoint_every": 1,
    })  # fmt: skip
    job = store.create_job(spec, extra={"metadata": None, "suffix": "bright"}).id
    claim = store.claim_job("test", 600)
    assert claim is not None
    workdir = home / "artifacts/jobs" / job
    ranker = InProcessRanker({"bright": brightness, "shapes": brightness}, spec.rewards)
    session.run_session(
        spec, job_id=job, workdir=workdir, models_dir=settings.models_dir, ranker=ranker, control=lambda: "run",
        on_event=lambda kind, data: None,
    )  # fmt: skip
    ranker.close()
    for step in range(1, STEPS + 1):
        store.add_checkpoint(claim, step, f"checkpoint-{step}", {}, kept=range(1, STEPS + 1))
    yield Platform(settings, store, job)
    store.database.close()


# ---- names ----------------------------------------------------------------------------------------------------------


def test_every_spelling_of_a_checkpoint_names_it(platform: Platform) -> None:
    """A job's id, JOB:STEP, a checkpoint's id, the names that the API makes, and a folder lead to the same weights."""
    row, job = platform.store.list_checkpoints(platform.job)[0][0], platform.store.get_job(platform.job)
    shown = schemas.to_checkpoint_object(row, job)
    names = [
        platform.job,
        f"{platform.job}:{STEPS}",
        shown.id,
        shown.fine_tuned_model_checkpoint,
        fine_tuned_name(job),
    ]
    folder = platform.settings.home / f"artifacts/jobs/{platform.job}/checkpoint-{STEPS}"
    wanted = (folder / job_layout.adapter_weights_file("unet")).read_bytes()
    for name in names:
        (found,) = platform.find(name)
        assert found.folder is not None
        assert (found.folder / job_layout.adapter_weights_file("unet")).read_bytes() == wanted, name
        assert (found.step, found.trained_rewards, found.label) == (STEPS, {"bright": 1.0}, f"bright:{STEPS}")
        assert not (found.folder / "optimizer.safetensors").exists()
    (local,) = platform.find(str(folder))
    assert (local.folder, local.step, local.trained_rewards) == (folder, STEPS, {})
    assert local.generator_fields["lora"].model_dump(include={"rank", "alpha"}) == {"rank": 4, "alpha": 8.0}


def test_the_newest_checkpoint_is_a_jobs_own(platform: Platform) -> None:
    assert [each.step for each in platform.find(f"{platform.job}:1", platform.job)] == [1, STEPS]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("ftjob-000000000000", "no such job"),
        ("ftckpt-000000000000", "no such job"),
        ("ft:tiny-turbo:dipole:other:{id8}", "no such job"),
        ("ft:tiny-turbo:dipole:x:not-an-id", "no such job"),
        ("{job}:77", "it has those of steps 2, 1"),
        ("out/checkpoint-3", "training_state.json is not there"),
        ("no-such-model", "unknown model"),
        ("../tiny", "unknown model"),
    ],
)
def test_a_name_that_means_nothing_is_told(platform: Platform, name: str, sentence: str) -> None:
    name = name.format(job=platform.job, id8=platform.job.removeprefix("ftjob-")[:8])
    with pytest.raises(InvalidInput, match=re.escape(sentence)) as caught:
        platform.find(name)
    assert caught.value.field == "model"


def test_models_given_twice_are_refused_and_like_labels_told_apart(platform: Platform, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="2 times"):
        platform.find("tiny-turbo", "tiny-turbo")
    original = platform.settings.home / f"artifacts/jobs/{platform.job}/checkpoint-1"
    folders = [shutil.copytree(original, tmp_path / name / "run/checkpoint-1") for name in ("a", "b")]
    assert [each.label for each in platform.find(*map(str, folders))] == [str(folder) for folder in folders]


def test_without_a_jobs_database_bases_and_folders_remain(platform: Platform, tmp_path: Path) -> None:
    """A machine that shares no database with the platform is told so, in a sentence, only when one is needed."""
    database = Database(f"sqlite:///{tmp_path}/empty.db")
    names = ModelResolver(JobStore(database), platform.artifacts, platform.settings.models_dir, tmp_path / "scratch")
    assert names.resolve_models(["tiny-turbo"])[0].folder is None
    with pytest.raises(ConfigurationError, match="DIPOLE_DATABASE_URL"):
        names.resolve_models([platform.job])
    with pytest.raises(ConfigurationError, match="DIPOLE_DATABASE_URL"):
        inputs.resolve_rewards(["shapes"], platform.settings, RewardRegistry(database), 60)
    database.close()


# ---- loading --------------------------------------------------------------------------------------------------------


def test_a_checkpoint_of_another_base_is_refused_before_anything_is_generated(
    platform: Platform, tmp_path: Path
) -> None:
    """One that says it is of a base whose weights here are others; the field is named, and the model."""
    write_pipeline(platform.settings.models_dir / "other", "sd")
    folder = shutil.copytree(
        platform.settings.home / f"artifacts/jobs/{platform.job}/checkpoint-1", tmp_path / "checkpoint-1"
    )
    state = json.loads((folder / "training_state.json").read_text())
    (folder / "training_state.json").write_text(json.dumps({**state, "model": "other"}))
    bench = platform.bench("tiny-turbo", str(folder), features="latents")
    with pytest.raises(InvalidInput, match="checkpoint-1") as caught:
        bench.check_models()
    assert caught.value.field == "model"
    assert str(folder) in str(caught.value)


def test_a_checkpoint_trained_in_another_precision_is_of_its_base_all_the_same(tmp_path: Path) -> None:
    """Fingerprints of one base differ between precisions: the one of the training counts, whichever that was."""
    spec = TrainSpec.model_validate({"prompts": LINES[:1], "rewards": [{"name": "r"}], "precision": "bf16"})
    generator = generators.build_generator(spec, models_dir=tmp_path)
    optimizer = torch.optim.AdamW(generator.parameters())
    base = resume_state.fingerprint_base(generator)
    folder = resume_state.save_checkpoint(
        tmp_path, 1, generator, optimizer, {"model": "tiny-turbo", "revision": None, "base": base}
    )
    plain = generators.build_generator(spec.model_copy(update={"precision": "fp32"}), models_dir=tmp_path)
    assert resume_state.fingerprint_base(plain) != base
    database = Database(f"sqlite:///{tmp_path}/none.db")
    names = ModelResolver(
        JobStore(database), ArtifactStore(str(tmp_path / "a"), tmp_path), tmp_path, tmp_path / "scratch"
    )
    bench = ModelLoader(
        names.resolve_models([str(folder)]), FeaturesSpec(), models_dir=tmp_path, device="cpu", precision="fp32"
    )
    bench.check_models()
    with bench.loaded(bench.models[0]) as (opened, _):
        assert opened.denoiser.dtype == torch.float32
    database.close()


def test_features_that_do_not_compare_are_refused(platform: Platform) -> None:
    """Latents of different kinds of models are different spaces; the error says which ones read images."""
    write_pipeline(platform.settings.models_dir / "pictures", "sd")
    with pytest.raises(InvalidInput, match="dinov2") as caught:
        platform.bench("tiny-turbo", "pictures", features="latents").check_models()
    assert caught.value.field == "features"


def test_weights_of_features_that_are_not_here_are_told_with_a_way_out(platform: Platform) -> None:
    with pytest.raises(InvalidInput, match="--features latents"):
        platform.bench("tiny-turbo", features="dinov2").check_models()


# ---- the evaluation -------------------------------------------------------------------------------------------------


def run(platform: Platform, names: list[str], scorers: dict[str, Any], **options: Any) -> dict[str, Any]:
    """A comparison with in-process rewards; the report. `trained` and `images` as in prepare()."""
    prompts = tuple(PromptSpec.model_validate(line) for line in options.pop("lines", LINES))
    spec = EvalSpec(images_per_prompt=options.pop("images", 2), prompts=prompts)
    specs = [RewardSpec(name=name, required=False, min_valid=1) for name in scorers]
    ranker = InProcessRanker(scorers, specs)
    rewards = [ResolvedReward(each, Endpoint(url="http://127.0.0.1:1")) for each in specs]
    bench = platform.bench(*names)
    bench.check_models()
    with comparison.Comparison(bench, spec, rewards, ranker, **options) as each:
        report, _ = each.run()
    ranker.close()
    json.dumps(report, allow_nan=False)
    return report


def test_models_see_the_same_prompts_and_noises(platform: Platform) -> None:
    """Two copies of one checkpoint differ in nothing, and the base is what it is without any adapter."""
    seen: dict[str, list[bytes]] = {}

    def keep(prompt: str, images: np.ndarray, metadata: Any) -> list[float]:
        seen.setdefault(prompt, []).append(images.tobytes())
        assert metadata["tag"] == next(line["metadata"]["tag"] for line in LINES if line["prompt"] == prompt)
        return brightness(prompt, images, metadata)

    names = ["tiny-turbo", platform.job, f"{platform.job}:{STEPS}"]
    report = run(platform, names, {"bright": keep})
    for base, one, other in seen.values():
        assert one == other
        assert one != base
    one, other = (model["figures"]["scores"]["bright"] for model in report["models"][1:])
    assert one == other
    assert other["difference"]["mean"] != 0
    plain = generators.build_generator(
        TrainSpec.model_validate({"prompts": LINES[:1], "rewards": [{"name": "r"}]}),
        models_dir=platform.settings.models_dir,
    )
    ranker = InProcessRanker({"bright": brightness})
    spec = EvalSpec(images_per_prompt=2, prompts=tuple(PromptSpec.model_validate(line) for line in LINES))
    flat = lambda x, *, prompt, seeds: {"x": x.flatten(1)[:, None]}  # noqa: E731
    alone, _ = score_prompts(spec, plain, flat, ranker, step=0, job_id="alone")
    ranker.close()
    with_adapter_off = [prompt["models"]["tiny-turbo"]["scores"] for prompt in report["prompts"]]
    assert with_adapter_off == [{key: list(values) for key, values in each.scores.items()} for each in alone]


def test_prompts_that_a_model_does_not_read_whole_are_noted(platform: Platform) -> None:
    """Each model reads its own: rewards judged the whole text of all."""
    spec = EvalSpec(images_per_prompt=2, prompts=(PromptSpec(prompt="red " * 20), PromptSpec(prompt="a red circle")))
    bench = platform.bench("tiny-turbo")
    bench.check_models()
    ranker = InProcessRanker({"bright": brightness})
    resolved = [ResolvedReward(RewardSpec(name="bright"), Endpoint(url="http://127.0.0.1:9"))]
    with comparison.Comparison(bench, spec, resolved, ranker) as each:
        report, _ = each.run()
    ranker.close()
    (note,) = [note for note in report["notes"] if "longer" in note]
    assert note.startswith("tiny-turbo: 1 of 2 prompts are longer than it reads: ")


def test_a_reward_that_fails_for_some_images_gives_null_there_and_is_counted(platform: Platform) -> None:
    """Every other image has its score; a whole failure, and ranks without scores, are told with the reason."""

    def patchy(prompt: str, images: np.ndarray, metadata: Any) -> list[float | None]:
        return [None, *brightness(prompt, images, metadata)[1:]]

    def dead(prompt: str, images: np.ndarray, metadata: Any) -> list[float]:
        raise RuntimeError("no such model")

    def ranks(prompt: str, images: np.ndarray, metadata: Any) -> RewardResult:
        return RewardResult(scores=tuple(-float(k) for k in range(len(images))), ordinal=True)

    report = run(platform, ["tiny-turbo"], {"patchy": patchy, "dead": dead, "ranks": ranks, "whole": brightness})
    total, (model,) = len(LINES) * 2, report["models"]
    assert [prompt["models"]["tiny-turbo"]["scores"]["patchy"][0] for prompt in report["prompts"]] == [None] * len(
        LINES
    )
    cells = {row.label: row.cells for row in table.table_rows(report)}
    assert cells["patchy"][0].text == f"{total // 2} of {total}"
    assert cells["dead"][0].text == cells["ranks"][0].text == f"0 of {total}"
    assert cells["whole"][0].text == f"{total} of {total}"
    assert model["missing"]["patchy"] == {"no score": total // 2}
    assert any("dead: 16 of 16 images have no score" in note and "no such model" in note for note in report["notes"])
    assert any("ranks" in note and comparison.ORDINAL_REASON in note for note in report["notes"])


def test_hacking_is_said_of_what_a_job_was_trained_on(platform: Platform) -> None:
    """A job's own rewards are known; --trained marks them for a model of which nothing is known."""
    calls: dict[str, int] = {}

    def rising(sign: int) -> Callable[..., list[float]]:
        def score(prompt: str, images: np.ndarray, metadata: Any) -> list[float]:
            name = f"{sign}{prompt}"
            calls[name] = calls.get(name, -1) + 1  # 0 for the baseline, 1 for the model after it
            return [sign * float(calls[name]) + k / 100 for k in range(len(images))]

        return score

    report = run(platform, ["tiny-turbo", platform.job], {"bright": rising(1), "watched": rising(-1)})
    assert report["models"][1]["trained"] == ["bright"]
    assert report["models"][1]["hacking"]["fallen"]["watched"] == pytest.approx(-1)
    assert report["notes"][0].startswith(f"bright:{STEPS}, reward hacking: against tiny-turbo bright +1.000")

    folder = str(platform.settings.home / f"artifacts/jobs/{platform.job}/checkpoint-{STEPS}")
    for trained, hacked in ([], False), (["bright"], True):
        calls.clear()
        scorers = {"bright": rising(1), "watched": rising(-1)}
        report = run(platform, ["tiny-turbo", folder], scorers, trained=trained)
        assert (report["models"][1]["hacking"] is not None) is hacked
        assert report["models"][0]["trained"] == []


# ---- inputs ---------------------------------------------------------------------------------------------------------


def test_prompts_are_a_file_or_an_uploaded_ones_id(platform: Platform, tmp_path: Path) -> None:
    """Both give the same prompts with their metadata; --limit takes the first; what is not there is named."""
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    files = FileRegistry(platform.store.database)
    platform.artifacts.write_file("files/file-1.jsonl", path)
    files.add_file("file-1", "prompts.jsonl", size=path.stat().st_size, lines=len(LINES), sha256="0")
    local = inputs.read_prompts(str(path), files, platform.artifacts)
    assert local == inputs.read_prompts("file-1", files, platform.artifacts)
    assert [each.metadata for each in local] == [line["metadata"] for line in LINES]
    assert inputs.read_prompts(str(path), files, platform.artifacts, 3) == local[:3]
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "broken.jsonl").write_text('{"prompt": ""}\n')
    for wrong in ("empty", "broken", "absent"):
        with pytest.raises(InvalidInput) as caught:
            inputs.read_prompts(str(tmp_path / f"{wrong}.jsonl"), files, platform.artifacts)
        assert (caught.value.field or "").startswith("prompts")


def test_rewards_are_registered_or_inline_and_on_allowed_hosts(platform: Platform) -> None:
    registry = RewardRegistry(platform.store.database)
    registry.put_reward("kept", Endpoint(url="http://127.0.0.1:8401/", key=SecretStr("secret")))
    resolve = lambda *names: inputs.resolve_rewards(names, platform.settings, registry, 9)  # noqa: E731
    kept, inline = resolve("kept", "inline=http://localhost:9000")
    assert (kept.endpoint.url, kept.endpoint.key and kept.endpoint.key.get_secret_value()) == (
        "http://127.0.0.1:8401",
        "secret",
    )
    assert (inline.endpoint.url, inline.endpoint.key, inline.spec.required) == ("http://localhost:9000", None, False)
    for wrong in (["absent"], ["x=http://example.com"], ["no/name"], ["kept", "kept"], ["x=file:///etc/passwd"]):
        with pytest.raises(InvalidInput):
            resolve(*wrong)


def test_a_reward_that_is_not_ready_is_told_before_anything_is_generated() -> None:
    """No answer and 503 are not ready; an endpoint without /readyz is, and keys are sent."""
    reward = ResolvedReward(RewardSpec(name="judge"), Endpoint(url="http://127.0.0.1:9"))

    def answering(status: int) -> httpx.MockTransport:
        return httpx.MockTransport(lambda request: httpx.Response(status))

    def refusing(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    for fine in (200, 404):
        inputs.check_rewards_ready([reward], answering(fine))
    for transport in (answering(503), httpx.MockTransport(refusing)):
        with pytest.raises(RewardUnavailable, match=r"judge at http://127\.0\.0\.1:9") as caught:
            inputs.check_rewards_ready([reward], transport)
        assert caught.value.reward == "judge"


# ---- the table ------------------------------------------------------------------------------------------------------


def evaluated(label: str, values: list[list[float | None]]) -> comparison.ModelEvaluation:
    scored = [
        ScoredPrompt(f"p{i}", "odd" if i % 2 else "even", {"r": row, "r.part": row}, 1.0, 1.5)
        for i, row in enumerate(values)
    ]
    images = [np.zeros((len(row), 8, 8, 3), np.uint8) for row in values]
    return comparison.ModelEvaluation(ModelRef(label, label, {"model": label}), scored, images, {}, 1.0)


def test_the_table_has_tags_as_rows_and_marks_what_is_sure() -> None:
    """Rewards in the order asked for with their parts below, bold where an interval leaves out no difference."""
    base, better = ([[x + k / 9 for k in range(2)] for x in row] for row in ([0.0] * 8, [0.5, 0.6] * 4))
    spec = EvalSpec(images_per_prompt=2, prompts=tuple(PromptSpec(prompt=f"p{i}") for i in range(8)))
    found = [evaluated("a", base), evaluated("b|c", better)]
    report = comparison.build_report(found, spec, ["r"], more={"rewards": [{"name": "r"}]})
    assert [row.label for row in table.table_rows(report)] == [
        "r", "  even (4)", "  odd (4)", "r.part", "  even (4)", "  odd (4)", "diversity, distance", "diversity, Vendi",
    ]  # fmt: skip
    assert table.column_headings(report) == ["score", "a", "b|c", "difference", "wins"], "all are scored"
    lines = table.render_markdown(report).splitlines()
    assert lines[0].startswith("8 prompts, 2 images each, all scored; ± is 95 % over prompts")
    assert lines[2] == r"| score | a | b\|c | difference | wins |"
    assert lines[4] == "| r | 0.056 ± 0.000 | 0.606 ± 0.045 | **+0.550 ± 0.045** | **100 % [100, 100]** |"
    assert lines[5].startswith("| &nbsp;&nbsp;even (4) |")
    assert "**" not in lines[5], "four prompts are sure of nothing"


# ---- in processes ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def process(*arguments: str, environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as file:
        started = subprocess.Popen(
            [sys.executable, "-m", "dipole.cli", *arguments], env=environment, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        yield started
    finally:
        started.terminate()
        started.wait(30)


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds} s: {what}"
        time.sleep(0.1)


def answers(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
    return False


def test_dipole_eval_in_processes(platform: Platform, redis_url: str, tmp_path: Path) -> None:
    """The command, a rank worker, Redis and the shapes service: two models, a table, every score, a contact sheet."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DIPOLE_")} | {
        "DIPOLE_HOME": str(platform.settings.home), "DIPOLE_REDIS_URL": redis_url,
        "DIPOLE_DATABASE_URL": platform.settings.database_url, "DIPOLE_ARTIFACTS_URL": platform.settings.artifacts_url,
        "DIPOLE_MODELS_DIR": str(platform.settings.models_dir), "COLUMNS": "120",
    }  # fmt: skip
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    prompts.write_text("".join(json.dumps(line) + "\n" for line in LINES))

    def evaluate_(*more: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable, "-m", "dipole.cli", "eval", "--model", "tiny-turbo", "--model", platform.job, "--prompts",
            str(prompts), "--images", "3", "--limit", "6", "--out", str(out), *more,
        ]  # fmt: skip
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)

    RewardRegistry(platform.store.database).put_reward(
        "shapes", Endpoint(url=url, key=SecretStr("a-key-of-the-endpoint"))
    )
    missing = evaluate_("--reward", "shapes")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert f"reward shapes at {url} does not answer" in missing.stderr

    plugin = "dipole_rewards.rewards.shapes:Shapes"
    served = {**environment, "DIPOLE_REWARD_KEY": "a-key-of-the-endpoint"}
    with (
        process("rewards", "serve", plugin, "--port", str(port), environment=served, log=tmp_path / "shapes.log"),
        process("serve", "rank-worker", environment=environment, log=tmp_path / "rank.log"),
    ):
        check = [sys.executable, "-m", "dipole.cli", "serve", "rank-worker", "--check"]
        wait_until(lambda: answers(url), "the reward")
        wait_until(lambda: subprocess.run(check, env=environment, check=False).returncode == 0, "the rank worker")
        done = evaluate_("--reward", "shapes")
    assert done.returncode == 0, done.stderr
    assert all(line.startswith("Loading the models") for line in done.stderr.splitlines()), done.stderr
    assert "6 prompts, 3 images each, all scored" in done.stdout
    assert "shapes.strict" in done.stdout

    report = json.loads((out / "evaluation.json").read_text())
    assert [model["label"] for model in report["models"]] == ["tiny-turbo", f"bright:{STEPS}"]
    assert report["rewards"][0]["model"] == "tiny-world-checker"
    assert [len(each["scores"]["shapes"]) for each in report["prompts"][0]["models"].values()] == [3, 3]
    assert report["prompts"][5]["metadata"] == LINES[5]["metadata"], "it reached the reward, which needs it"
    means = [model["figures"]["scores"]["shapes"]["mean"] for model in report["models"]]
    every = [each["models"]["tiny-turbo"]["scores"]["shapes"] for each in report["prompts"]]
    assert means[0] == pytest.approx(np.mean(every))
    difference = report["models"][1]["figures"]["scores"]["shapes"]["difference"]["mean"]
    assert difference == pytest.approx(means[1] - means[0])
    assert f"| shapes | {means[0]:.3f} ± " in (out / "table.md").read_text()
    with Image.open(out / "contact-sheet.png") as sheet:
        assert sheet.width <= 1800
        assert sheet.height <= 1400
    assert not list((platform.settings.home / "work").glob("eval-*")), "copied checkpoints are gone"
