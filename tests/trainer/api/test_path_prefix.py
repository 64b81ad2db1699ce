"""The trainer's API behind a proxy that adds a path prefix of which it knows nothing."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
from typer.testing import CliRunner

from dipole.cli import app
from dipole.settings import ApiSettings
from dipole_trainer.database.engine import Database
from dipole_trainer.jobs.store import JobStore
from dipole_trainer.weights.lora_formats import LORA_WEIGHTS_FILE

from ...prefix_proxy import serve_below

JOBS = "v1/fine_tuning/jobs"


def adapter() -> bytes:
    """A safetensors file of one tensor, as PEFT names it."""
    header = json.dumps({"down.to_q.lora_A.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    return len(header).to_bytes(8, "little") + header + b"12345678"


def write_outputs(folder: Path, url: str) -> str:
    """A job with a checkpoint and a sample; its id."""
    body: dict[str, Any] = {"prompts": [{"prompt": "a red square"}], "allow_unready": True}
    body["rewards"] = [{"name": "shapes", "url": "http://127.0.0.1:9"}]
    job: str = httpx.post(f"{url}/{JOBS}", json=body, trust_env=False).raise_for_status().json()["id"]
    root = folder / "artifacts/jobs" / job
    lora = root / "checkpoint-2/unet_lora"
    lora.mkdir(parents=True)
    (lora / "adapter_model.safetensors").write_bytes(adapter())
    (lora / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, "target_modules": ["to_q"]}))
    (root / "samples").mkdir()
    (root / "samples/step-1.png").write_bytes(b"content")
    database = Database(f"sqlite:///{folder}/jobs.db")
    store = JobStore(database)
    claim = store.claim_job("worker", ApiSettings().lease_s)
    assert claim is not None
    store.add_checkpoint(claim, 2, "checkpoint-2", {}, kept=[2])
    database.close()
    return job


def test_every_link_is_relative_to_the_base(api_server: Any, tmp_path: Path) -> None:
    """Checkpoints and artifacts are found below the prefix: also by the command line."""
    with api_server(tmp_path) as server, serve_below(server.url, "/team/trainer") as base:
        job = write_outputs(tmp_path, base)
        with httpx.Client(trust_env=False) as plain:
            (checkpoint,) = plain.get(f"{base}/{JOBS}/{job}/checkpoints").json()["data"]
            packed = plain.get(urljoin(f"{base}/", checkpoint["download"])).raise_for_status()
            assert packed.headers["content-type"] == "application/zip"
            listed = plain.get(f"{base}/{JOBS}/{job}/artifacts").json()["data"]
            (sample,) = [each for each in listed if each["path"].startswith("samples/")]
            assert plain.get(urljoin(f"{base}/", sample["url"])).content == b"content"
            assert plain.get(f"{base}/{JOBS}/").status_code == 404
        target = tmp_path / "lora.zip"
        arguments = ["jobs", "download", job, "-o", str(target)]
        done = CliRunner().invoke(app, arguments, env={"DIPOLE_API_URL": base, "NO_COLOR": "1"})
        assert done.exit_code == 0, done.output
    assert LORA_WEIGHTS_FILE in zipfile.ZipFile(target).namelist()
