"""docs/sd-turbo-tonight.md, its four commands as they stand there, against a hub on loopback: from nothing to a LoRA.

The weights are small and random, laid out as the real repositories are; the job is the published one, smaller.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dipole.downloads.table import read_table
from dipole_rewards import tiny_weights
from dipole_trainer.generators import tiny_pipelines

from ..fake_hub import FakeHub, running_hub, write_table
from .conftest import PATIENCE_S

REPOSITORY = Path(__file__).parents[2]
WIDTH = 64  # of the latent MAE: two channels a group, so that its last map may be one pixel
PAGE = REPOSITORY / "docs/sd-turbo-tonight.md"
# what a CPU with a small pipeline can do of examples/sd-turbo.json
SMALLER = {"resolution": 64, "precision": "fp32", "candidates": 6, "prompts_per_step": 2, "steps": 2}
SMALLER |= {"features": {"type": "latent_mae", "keys": ["layer4_mean", "layer4_std"]}}  # a map of one pixel
SMALLER |= {"method": {"type": "drpo"}, "evaluation": {"every": 2, "images_per_prompt": 1}, "checkpoint_every": 1}


def read_commands() -> list[str]:
    """The page's four commands, lines joined, without the folder of the environment."""
    section = PAGE.read_text().partition("## Four commands")[2].partition("\n## ")[0]
    blocks = re.findall(r"(?m)^```\n(.*?)^```", section, re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    assert all(line.startswith(".venv/bin/dipole ") for line in lines)
    return [re.sub(" +", " ", line) for line in lines]


def write_latent_mae(path: Path) -> None:
    """Four stages of one block, as `mae_latent_256_torch.pth` names its tensors."""
    sizes = {"conv1.weight": (WIDTH, 4, 3, 3), "gn1.weight": (WIDTH,), "gn1.bias": (WIDTH,)}
    for stage in range(4):
        block = f"stages_{stage}.layers_0"
        for number in (1, 2):
            sizes |= {f"{block}.conv{number}.weight": (WIDTH, WIDTH, 3, 3)}
            sizes |= {f"{block}.gn{number}.{kind}": (WIDTH,) for kind in ("weight", "bias")}
        if stage:  # halved in size
            sizes |= {f"{block}.proj_conv.weight": (WIDTH, WIDTH, 1, 1)}
            sizes |= {f"{block}.proj_gn.{kind}": (WIDTH,) for kind in ("weight", "bias")}
        sizes |= {f"layer{stage + 1}_norm.{kind}": (WIDTH,) for kind in ("weight", "bias")}
    torch.manual_seed(0)
    path.parent.mkdir(parents=True)
    torch.save({f"encoder.{name}": torch.randn(shape) for name, shape in sizes.items()}, path)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    """What the page fetches, published: SD-Turbo, the latent MAE, PickScore and CLIP."""
    published = tmp_path / "published"
    with running_hub() as hub:
        hub.repositories["stabilityai/sd-turbo"] = tiny_pipelines.write_pipeline(published / "sd-turbo", "sd")
        write_latent_mae(published / "mae/mae_latent_256_torch.pth")
        hub.files["mae_latent_256_torch.pth"] = published / "mae/mae_latent_256_torch.pth"
        for reward in ("pickscore", "clip"):
            weights = tiny_weights.write_weights(published / "weights" / reward, reward)
            for part in read_table().rewards[reward].parts:
                hub.repositories[part.source] = published / part.source
                for name in part.files:
                    target = published / part.source / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(weights / part.target_name(name), target)
        yield hub


@pytest.fixture
def folder(hub: FakeHub, tmp_path: Path) -> Path:
    """A clone, as far as the page uses it: the examples, and a `.venv/bin/dipole`."""
    clone = tmp_path / "clone"
    shutil.copytree(REPOSITORY / "examples", clone / "examples", ignore=shutil.ignore_patterns("node_modules"))
    job = clone / "examples/sd-turbo.json"
    job.write_text(json.dumps({**json.loads(job.read_text()), **SMALLER}))
    prompts = clone / "examples/prompts-held-out.txt"
    prompts.write_text("".join(prompts.read_text().splitlines(keepends=True)[:2]))
    program = clone / ".venv/bin/dipole"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dipole.cli "$@"\n')
    program.chmod(0o755)
    write_table(hub, clone / "table.toml")
    return clone


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_four_commands_bring_a_lora(hub: FakeHub, folder: Path) -> None:
    """Fetched, prepared, started, trained, downloaded: each as a user types it, and the LoRA is not nothing."""
    fetch, prepare, start, train = read_commands()
    port = free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("DIPOLE_")},
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "hf"),
        "DIPOLE_WEIGHTS_TABLE": str(folder / "table.toml"),
        "DIPOLE_API_PORT": str(port),
        "DIPOLE_API_URL": f"http://127.0.0.1:{port}",
        "NO_COLOR": "1",
    }

    def run(command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=2 * PATIENCE_S
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(fetch)
    run(prepare)
    up = subprocess.Popen(
        ["bash", "-c", f"exec {start}"], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert up.stdout is not None
        said = ""
        while "Ready." not in said:
            line = up.stdout.readline()
            assert line, f"`{start}` ended: {said}"
            said += line
        assert "pickscore" in said
        run(train)
        (job,) = map(json.loads, run(".venv/bin/dipole jobs list --json").splitlines())
        assert job["status"] == "succeeded"
        run(f".venv/bin/dipole jobs download {job['id']} -o lora.zip")
    finally:
        up.send_signal(signal.SIGINT)
        up.communicate(timeout=PATIENCE_S)
    zipfile.ZipFile(folder / "lora.zip").extractall(folder / "lora")
    (weights,) = (folder / "lora").rglob("pytorch_lora_weights.safetensors")
    trained = load_file(weights)
    assert any(tensor.abs().max() > 0 for name, tensor in trained.items() if "lora_B" in name or "up" in name)
    export = folder / ".dipole/artifacts/jobs" / job["id"] / "export"
    assert {"pytorch_lora_weights.safetensors", "README.md"} <= {path.name for path in export.iterdir()}
    assert list(export.glob("*_webui.safetensors"))
