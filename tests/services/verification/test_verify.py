"""`dipole rewards verify` with a stand-in of a published package, which pip installs into a real environment.

The stand-ins are wheels in a folder, one of each requirement; that of `hpsv2` has the functions that our script calls
and answers what a file beside the weights says.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dipole.errors import ConfigurationError, DownloadError, InvalidInput
from dipole_rewards import tiny_weights
from dipole_rewards.networks.golden_scores import read_golden_file
from dipole_rewards.rewards.hpsv2 import HPSv2
from dipole_rewards.settings import WeightSettings
from dipole_rewards.verification import comparison, environment
from dipole_rewards.verification.environment import Environment, PublishedImplementationFailed

REQUIREMENTS = comparison.read_packages()["hpsv2"].requirements
STAND_IN = """
import importlib.util
import json
import sys
from pathlib import Path

from PIL_of_the_stand_in import read_size

model_dict = {}
device = None


def create_model_and_transforms(name, pretrained, **options):
    assert (name, pretrained) == ("ViT-H-14", None), "nothing is fetched"
    return "model", None, "preprocess"


def score(img_path, prompt, cp=None, hps_version="v2.0"):
    assert model_dict == {"model": "model", "preprocess_val": "preprocess"}
    assert (prompt, hps_version, device) == ("a soft gradient", "v2.1", "cpu")
    assert read_size(Path(img_path).read_bytes()) == (64, 48), "the golden image"
    assert importlib.util.find_spec("dipole") is None, "nothing of ours is in this environment"
    print("a package may say what it likes")
    answer = json.loads(Path(cp).with_name("answer.json").read_text())
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return [answer["score"]]
"""
READ_SIZE = """
def read_size(png):
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
"""


def write_wheel(folder: Path, requirement: str, modules: dict[str, str]) -> None:
    """A wheel of these modules, as pip installs it."""
    name, _, version = requirement.partition("==")
    name = name.replace("-", "_")
    info = f"{name}-{version}.dist-info"
    files = {
        **modules,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(path, text)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    for requirement in REQUIREMENTS:
        write_wheel(folder, requirement, {f"{requirement.partition('==')[0]}_stand_in.py": ""})
    modules = {
        "hpsv2/__init__.py": "",
        "hpsv2/img_score.py": STAND_IN,
        "PIL_of_the_stand_in.py": READ_SIZE,
    }
    write_wheel(folder, REQUIREMENTS[0], modules)
    return folder


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory, packages: Path) -> Path:
    """Where environments lie, with that of hpsv2 installed."""
    folder = tmp_path_factory.mktemp("environments")
    Environment(folder / "hpsv2").install(REQUIREMENTS, python=sys.executable, packages=packages)
    return folder


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    folder = tiny_weights.write_weights(tmp_path / "weights/hpsv2", "hpsv2")
    score = json.loads((folder / "golden.json").read_text())["score"]
    (folder / "golden.json").unlink()
    (folder / "answer.json").write_text(json.dumps({"score": score}))
    return folder


def verify(weights: Path, environments: Path, steps: list[str] | None = None) -> comparison.ScoreComparison:
    said = [] if steps is None else steps

    @contextlib.contextmanager
    def show_step(step: str) -> Iterator[None]:
        said.append(step)
        yield

    return comparison.verify_reward(
        "hpsv2",
        settings=WeightSettings(reward_weights=weights, reward_dtype="fp32"),
        device="cpu",
        environments=environments,
        show_step=show_step,
        python=sys.executable,
    )


def run_verify(weights: Path, home: Path, packages: Path) -> subprocess.CompletedProcess[str]:
    """The command as a user types it where there is no network."""
    command = [sys.executable, "-m", "dipole.cli", "rewards", "verify", "hpsv2", "--dtype", "fp32"]
    return subprocess.run(
        [*command, "--weights", str(weights), "--packages", str(packages)],
        env={**os.environ, "DIPOLE_HOME": str(home), "PYTHONPATH": str(weights)},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


def test_agreement_is_a_sentence_and_a_golden_file(weights: Path, tmp_path: Path, packages: Path) -> None:
    """From nothing: the environment is made, both numbers are printed, and the next start is verified."""
    done = run_verify(weights, tmp_path / "home", packages)
    assert done.returncode == 0, done.stderr
    (sentence,) = done.stdout.splitlines()
    score = json.loads((weights / "answer.json").read_text())["score"]
    assert sentence.count(f"{score:.6g}") == 2
    assert "they agree" in sentence
    steps = [line for line in done.stderr.splitlines() if line.endswith(" …")]
    assert [step.split()[0] for step in steps] == ["ours:", "installing", "the"]
    known = read_golden_file(weights, tolerance=1)
    assert known is not None
    assert (known.score, known.recipe) == (score, "1")
    assert known.revision is not None
    assert known.revision.startswith("sha256:")
    assert known.source.startswith("hpsv2==1.2.0 on cpu, ")


def test_disagreement_is_a_sentence_and_exit_code_1(
    weights: Path, tmp_path: Path, packages: Path, environments: Path
) -> None:
    """Both numbers are told, and golden.json has the published one: the service does not start with another."""
    score = json.loads((weights / "answer.json").read_text())["score"]
    (weights / "answer.json").write_text(json.dumps({"score": score + 0.1}))
    (tmp_path / "home").mkdir()
    (tmp_path / "home/published").symlink_to(environments)
    done = run_verify(weights, tmp_path / "home", packages)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("Error: hpsv2: the published implementation")
    assert all(part in last for part in (f"{score:.6g}", f"{score + 0.1:.6g}", "differ by more than 0.005"))
    assert "installing" not in done.stderr, "the environment is used again"
    assert json.loads((weights / "golden.json").read_text())["score"] == score + 0.1
    assert HPSv2.from_settings(WeightSettings(reward_weights=weights), "cpu").golden().score == score + 0.1


def test_what_cannot_be_installed_is_a_sentence(tmp_path: Path, packages: Path) -> None:
    """With pip's own reason, and what to do; half an environment is not used again."""
    made = Environment(tmp_path / "hpsv2")
    with pytest.raises(DownloadError) as caught:
        made.install(["hpsv2==1.2.0", "missing-package==9"], python=sys.executable, packages=packages)
    said = str(caught.value)
    assert "pip cannot install hpsv2==1.2.0, missing-package==9" in said
    assert "No matching distribution found for missing-package==9" in said
    assert "--packages" in said
    assert "\n" not in said
    assert not made.has(["hpsv2==1.2.0", "missing-package==9"])


@pytest.mark.parametrize("python", ["/nowhere/python", "false"])
def test_a_python_that_makes_no_environment_is_named(python: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="--python") as caught:
        Environment(tmp_path / "x").install(["hpsv2==1.2.0"], python=python, packages=tmp_path)
    assert python in str(caught.value)


def test_a_published_implementation_that_fails_is_a_sentence(weights: Path, environments: Path) -> None:
    """Its last words, and where the others are; nothing is written."""
    (weights / "answer.json").write_text(json.dumps({"error": "no CUDA here"}))
    with pytest.raises(PublishedImplementationFailed, match="no CUDA here") as caught:
        verify(weights, environments)
    assert str(environments / "hpsv2" / environment.LOG_FILE) in str(caught.value)
    assert not (weights / "golden.json").exists()


def test_other_requirements_make_the_environment_anew(tmp_path: Path, packages: Path) -> None:
    """A table with newer pins, or an install that was cut short."""
    made = Environment(tmp_path / "hpsv2")
    made.folder.mkdir()
    assert not made.has(REQUIREMENTS)
    (made.folder / environment.INSTALLED_NOTE).write_text(json.dumps(REQUIREMENTS))
    assert made.has(REQUIREMENTS)
    assert not made.has(["hpsv2==1.3.0"])
    (made.folder / environment.INSTALLED_NOTE).write_text("[")
    assert not made.has(REQUIREMENTS)


def test_a_missing_weight_is_named_before_anything_is_installed(weights: Path, tmp_path: Path) -> None:
    (weights / "config.json").unlink()
    steps: list[str] = []
    with pytest.raises(
        ConfigurationError, match=r"config\.json is missing; fetch it with `dipole rewards prepare hpsv2"
    ):
        verify(weights, tmp_path / "environments", steps)
    assert steps == []


def test_a_reward_without_a_published_implementation_is_refused(tmp_path: Path) -> None:
    """GenEval's published detector is another one; programs have no weights."""
    for name in ("geneval", "shapes"):
        with pytest.raises(InvalidInput, match="these have: pickscore, clip, aesthetic, hpsv2, imagereward, hpsv3"):
            comparison.verify_reward(
                name,
                settings=WeightSettings(reward_weights=tmp_path),
                device="cpu",
                environments=tmp_path,
                show_step=lambda step: contextlib.nullcontext(),
                python=sys.executable,
            )
