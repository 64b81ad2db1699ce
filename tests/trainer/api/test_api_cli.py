"""`dipole jobs` and `dipole files` against a real server, also one that goes away and comes back."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from dipole.cli import app
from dipole.cli.demos.demo_jobs import cancel_left_jobs, create_demo_job
from dipole.cli.jobs import parse_reward
from dipole.client.trainer_api import TrainerApi, TrainerApiError
from dipole.errors import InvalidInput
from dipole_trainer.database.engine import Database
from dipole_trainer.jobs.store import JobStore

PROMPTS = '{"prompt": "a red square"}\n'


def dipole(server: Any, *arguments: str, status: int = 0) -> str:
    """A command's standard output, or its errors when it is to fail; its exit status must be `status`."""
    environment = {"DIPOLE_API_URL": server.url, "COLUMNS": "60", "NO_COLOR": "1"}
    done = CliRunner().invoke(app, arguments, env=environment)
    assert done.exit_code == status, done.output
    return done.stdout if status == 0 else done.stderr


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("shapes", {"name": "shapes"}),
        ("shapes:0", {"name": "shapes", "weight": 0.0}),
        ("shapes:.5", {"name": "shapes", "weight": 0.5}),
        ("a=http://127.0.0.1:8401", {"name": "a", "url": "http://127.0.0.1:8401"}),
        ("a=http://127.0.0.1:8401:2", {"name": "a", "url": "http://127.0.0.1:8401", "weight": 2.0}),
        ("a=https://h.example/x:0.25", {"name": "a", "url": "https://h.example/x", "weight": 0.25}),
        ("a=http://h.example:0.25", {"name": "a", "url": "http://h.example", "weight": 0.25}),
        ("a=http://[::1]:1/x:3", {"name": "a", "url": "http://[::1]:1/x", "weight": 3.0}),
    ],
)
def test_a_reward_option_means_what_it_shows(text: str, reward: dict[str, Any]) -> None:
    """NAME[=URL][:WEIGHT]; the first number after a host is its port."""
    assert parse_reward(text) == reward


@pytest.mark.parametrize("text", ["", "a b", "a=ftp://x", "a=", "a:x", "a=http://x:1:2:3"])
def test_a_reward_option_that_means_nothing_is_refused(text: str) -> None:
    """The sentence shows the form."""
    with pytest.raises(InvalidInput, match="NAME"):
        parse_reward(text)


def test_loopback_is_asked_without_a_proxy(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy in the environment is for other hosts: its own loopback is not ours."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with TrainerApi(api.url) as ours:
        assert [reward["name"] for reward in ours.get("/v1/rewards")["data"]] == ["shapes"]
    with (
        TrainerApi("http://api.invalid") as others,
        pytest.raises(TrainerApiError, match="Connection refused"),
    ):  # the proxy's
        others.get("/v1/rewards")


def test_create_steer_and_show(api: Any, tmp_path: Path) -> None:
    """Every command against a real server; `create` prints the id alone; errors are sentences with exit code 1."""
    prompts, config = tmp_path / "prompts.jsonl", tmp_path / "job.json"
    prompts.write_text(PROMPTS)
    config.write_text(json.dumps({"steps": 3, "seed": 9, "rewards": [{"name": "none"}]}))
    job = dipole(
        api, "jobs", "create", "--prompts", str(prompts), "--reward", "shapes", "--reward", "w=http://127.0.0.1:9:0",
        "--steps", "7", "--config", str(config), "--validation", str(prompts), "--allow-unready",
    ).strip()  # fmt: skip
    shown = json.loads(dipole(api, "jobs", "show", job))
    assert (shown["steps"], shown["seed"], shown["evaluation"]["prompt_count"]) == (7, 9, 1)
    assert [(reward["name"], reward["weight"]) for reward in shown["rewards"]] == [("shapes", 1), ("w", 0)]
    assert job in dipole(api, "jobs", "list")
    assert "paused" in dipole(api, "jobs", "pause", job)
    assert "queued" in dipole(api, "jobs", "resume", job)
    changed = dipole(api, "jobs", "weights", job, "shapes=0.5", "w=-1")
    assert "weights from the next step on: shapes 0.5, w -1" in changed
    assert "is not REWARD=WEIGHT" in dipole(api, "jobs", "weights", job, "shapes=nan", status=1)
    assert "the job has no such reward; it has shapes, w" in dipole(api, "jobs", "weights", job, "y=1", status=1)
    assert shown["training_file"] in dipole(api, "files", "list")
    assert "cancelled" in dipole(api, "jobs", "cancel", job)
    assert "Job cancelled" in dipole(api, "jobs", "events", job)
    assert "cannot be resumed" in dipole(api, "jobs", "resume", job, status=1)
    assert "no checkpoint" in dipole(api, "jobs", "download", job, status=1)
    assert "there is no job ftjob-none" in dipole(api, "jobs", "watch", "ftjob-none", status=1)
    assert "it ended before its first evaluation" in dipole(api, "jobs", "report", job, status=1)


def test_a_demo_cancels_what_a_killed_one_left(api: Any, tmp_path: Path) -> None:
    """And nothing else that is in its folder: neither what has ended, nor what somebody made there by hand."""
    path, told = tmp_path / "prompts.jsonl", list[str]()
    path.write_text(PROMPTS)
    body = {"model": "tiny-turbo", "rewards": [{"name": "shapes"}], "allow_unready": True}
    files = {"training_file": path}
    with TrainerApi(api.url) as client:
        others = client.create_job({**body, "metadata": {"made_by": "me"}}, files)["id"]
        ended, left = (create_demo_job(client, body, files)["id"] for _ in range(2))
        client.post(f"/v1/fine_tuning/jobs/{ended}/cancel")
        cancel_left_jobs(client, told.append)
        assert told == [f"Cancelled {left}, which an earlier demo in this folder had left"]
        assert client.get(f"/v1/fine_tuning/jobs/{left}")["status"] == "cancelled"
        assert client.get(f"/v1/fine_tuning/jobs/{others}")["status"] == "queued"
        cancel_left_jobs(client, told.append)
        client.post(f"/v1/fine_tuning/jobs/{others}/cancel")
    assert len(told) == 1


def test_a_refused_job_leaves_no_upload(api: Any, tmp_path: Path) -> None:
    """Neither when the job is refused, nor when the second of its files is."""
    prompts, broken = tmp_path / "prompts.jsonl", tmp_path / "broken.jsonl"
    prompts.write_text(PROMPTS)
    broken.write_text("{")
    before = dipole(api, "files", "list", "--json")
    create = ("jobs", "create", "--prompts", str(prompts))
    assert "unknown reward" in dipole(api, *create, "--validation", str(prompts), "--reward", "nobody", status=1)
    assert "JSON lines" in dipole(api, *create, "--validation", str(broken), "--reward", "shapes", status=1)
    assert dipole(api, "files", "list", "--json") == before


def test_sides_follow_the_number_of_candidates(api: Any, tmp_path: Path) -> None:
    """`--candidates 8` is enough to say; the job shows the P and N that follow, or keeps those that are given."""
    prompts, config = tmp_path / "prompts.jsonl", tmp_path / "job.json"
    prompts.write_text(PROMPTS)
    config.write_text(json.dumps({"method": {"type": "dpo", "dpo": {"positives": 5}}}))
    create = ("jobs", "create", "--prompts", str(prompts), "--reward", "shapes", "--candidates", "8", "--allow-unready")
    for more, sides in (((), (2, 2)), (("--config", str(config)), (5, 2))):
        job = dipole(api, *create, *more).strip()
        method = json.loads(dipole(api, "jobs", "show", job))["method"]
        settings = method[method["type"]]
        assert (settings["positives"], settings["negatives"]) == sides
        dipole(api, "jobs", "cancel", job)


def test_lists_for_programs_and_what_deletes(api: Any, tmp_path: Path) -> None:
    """`--json` prints an object a line; what was deleted is printed, and gone; what is not there is an error."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(PROMPTS)
    file = dipole(api, "files", "upload", str(prompts)).strip()
    assert file in [json.loads(line)["id"] for line in dipole(api, "files", "list", "--json").splitlines()]
    assert dipole(api, "files", "delete", file).strip() == file
    assert file not in dipole(api, "files", "list")
    assert "there is no file" in dipole(api, "files", "delete", file, status=1)
    dipole(api, "rewards", "register", "brief=http://127.0.0.1:9")
    named = [json.loads(line)["name"] for line in dipole(api, "rewards", "list", "--json").splitlines()]
    assert {"brief", "shapes"} <= set(named)
    assert dipole(api, "rewards", "delete", "brief").strip() == "brief"
    assert "brief" not in dipole(api, "rewards", "list")
    assert "there is no reward" in dipole(api, "rewards", "delete", "brief", status=1)
    assert "nothing at" in dipole(api, "rewards", "delete", "a/b", status=1)


def test_status_says_what_is_ready(api: Any) -> None:
    """The API is, the reward where nothing answers is not, and that is exit code 1."""
    environment = {"DIPOLE_API_URL": api.url, "NO_COLOR": "1"}
    done = CliRunner().invoke(app, ["status"], env=environment)
    assert done.exit_code == 1
    assert done.stdout.startswith(f"The API at {api.url} is ready.\nJobs, of the latest 100: ")
    (shapes,) = [line.split() for line in done.stdout.splitlines() if line.strip().startswith("shapes")]
    assert shapes[:3] == ["shapes", "no", "http://127.0.0.1:9"]
    told = json.loads(CliRunner().invoke(app, ["status", "--json"], env=environment).stdout)
    assert [reward["ok"] for reward in told["rewards"] if reward["name"] == "shapes"] == [False]


def listed_models(lines: str) -> list[str]:
    """Ids of models among JSON lines, which are followed by published weights."""
    return [each["id"] for each in map(json.loads, lines.splitlines()) if each["object"] == "model"]


def test_models_are_listed_without_an_api_too(api: Any, tmp_path: Path) -> None:
    """The API's where there is one; else those of the folder, and on standard error why."""
    assert "tiny-turbo" in listed_models(dipole(api, "models", "list", "--json"))
    assert "tiny-turbo" in dipole(api, "models", "list")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/model_index.json").write_text("{}")
    (tmp_path / "no-model").mkdir()
    environment = {"DIPOLE_API_URL": "http://127.0.0.1:1", "DIPOLE_MODELS_DIR": str(tmp_path), "NO_COLOR": "1"}
    done = CliRunner().invoke(app, ["models", "list", "--json"], env=environment)
    assert done.exit_code == 0
    assert listed_models(done.stdout) == ["mine"]
    assert str(tmp_path) in done.stderr


def test_an_upload_prints_the_id_alone_and_says_beside_what_it_took(api: Any, tmp_path: Path) -> None:
    """Scripts read the id; people read on standard error that the file holds prompts."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(PROMPTS)
    environment = {"DIPOLE_API_URL": api.url, "NO_COLOR": "1"}
    done = CliRunner().invoke(app, ["files", "upload", str(prompts)], env=environment)
    assert (done.stdout.startswith("file-"), len(done.stdout.split())) == (True, 1)
    assert done.stderr == "1 prompts\n"


def test_a_server_that_is_not_there_is_a_sentence() -> None:
    """It says where it looked and what to do."""
    with TrainerApi("http://127.0.0.1:9") as api, pytest.raises(TrainerApiError, match="dipole up"):
        api.get("/v1/fine_tuning/jobs")


def test_a_watched_job_is_a_plain_line_a_step_in_a_pipe(
    api_server: Callable[..., AbstractContextManager[Any]], tmp_path: Path
) -> None:
    """What is waited for too; no control character, whatever an endpoint says of itself."""
    with api_server(tmp_path) as server:
        body = {"prompts": [{"prompt": "x"}], "rewards": [{"name": "s", "url": "http://127.0.0.1:9"}],
                "allow_unready": True, "steps": 2}  # fmt: skip
        job = httpx.post(f"{server.url}/v1/fine_tuning/jobs", json=body, timeout=30).raise_for_status().json()["id"]
        database = Database(server.environment["DIPOLE_DATABASE_URL"])
        store = JobStore(database)
        claim = store.claim_job("worker", 600)
        assert claim is not None
        pending = {"step": 1, "reward": "s", "groups": 3, "step_groups": 1, "oldest_s": 65.0, "per_minute": 2.0,
                   "expected_s": 30.0}  # fmt: skip
        store.append_event(claim, "rankings_pending", pending)
        for step in (1, 2):
            figures = {"rewards": {"s": 0.5}, "images_per_s": 4.0, "eta_s": 61.0, "loss": 0.1}
            store.append_event(claim, "step", {"step": step, "steps": 2, **figures})
        store.append_event(claim, "reward_failure", {"step": 2, "reward": "s", "group": "g", "reason": "a\x1b[31mb\nc"})
        store.finish_job(claim, "succeeded")
        database.close()
        lines = dipole(server, "jobs", "watch", job).splitlines()
    told = [line[20:] for line in lines]
    assert [line for line in told if line.startswith("step ")] == [
        f"step {step}/2  s 0.500  4.0 img/s  ETA 1:01" for step in (1, 2)
    ]
    assert "waiting for s: 3 groups, the oldest for 1:05  2.0 a minute  next step in about 0:30" in told
    assert "Reward s was left out of a group: a [31mb c" in told
    assert lines[-1] == "succeeded"
    assert all(line.isprintable() for line in lines)


def test_watching_survives_a_restart_of_the_api(
    api_server: Callable[..., AbstractContextManager[Any]], tmp_path: Path
) -> None:
    """Each event arrives once, in order, though the API goes away while the job is watched."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    seen: list[tuple[str, str]] = []
    breaks: list[str] = []

    def watch(url: str, job: str) -> None:
        with TrainerApi(url) as client:
            seen.extend((event["id"], event["kind"]) for event in client.follow_events(job, on_break=breaks.append))

    with api_server(tmp_path, port) as server:
        httpx.post(f"{server.url}/v1/rewards", json={"name": "s", "url": "http://127.0.0.1:9"}).raise_for_status()
        body = {"prompts": [{"prompt": "x"}], "rewards": [{"name": "s"}], "allow_unready": True}
        job = httpx.post(f"{server.url}/v1/fine_tuning/jobs", json=body, timeout=30).raise_for_status().json()["id"]
        database = Database(server.environment["DIPOLE_DATABASE_URL"])
        store = JobStore(database)
        claim = store.claim_job("worker", 600)
        assert claim is not None
        watcher = threading.Thread(target=watch, args=(server.url, job))
        watcher.start()
        store.append_event(claim, "step", {"step": 1})
        time.sleep(1.5)
        server.process.kill()
        server.process.wait()
    store.append_event(claim, "step", {"step": 2})
    with api_server(tmp_path, port):
        store.append_event(claim, "step", {"step": 3})
        store.finish_job(claim, "succeeded")
        watcher.join(60)
        assert not watcher.is_alive()
    database.close()
    # no worker and a reward that is away
    assert [kind for _, kind in seen[1:3]] == ["warning", "warning"]
    del seen[1:3]
    assert [kind for _, kind in seen] == ["created", "queued", "running", "step", "step", "step", "succeeded"]
    assert len(set(seen)) == len(seen)
    assert breaks


def test_a_download_is_whole_or_not_there(tmp_path: Path) -> None:
    """A connection that breaks half-way leaves no file that looks like a checkpoint."""

    class Breaks(httpx.SyncByteStream):
        def __iter__(self) -> Any:
            yield b"half"
            raise httpx.ReadError("broken")

    transport = httpx.MockTransport(lambda _: httpx.Response(200, stream=Breaks()))
    with TrainerApi(transport=transport) as client, pytest.raises(TrainerApiError):
        client.download_file("/x", tmp_path / "lora.zip")
    assert list(tmp_path.iterdir()) == []
    whole = httpx.MockTransport(lambda _: httpx.Response(200, content=b"whole"))
    with TrainerApi(transport=whole) as client:
        assert client.download_file("/x", tmp_path / "lora.zip") == 5
    assert (tmp_path / "lora.zip").read_bytes() == b"whole"


def test_a_config_of_another_editor_is_read(api: Any, tmp_path: Path) -> None:
    """A byte order mark, or UTF-16; half of a character is named, and no traceback."""
    config = {"prompts": [{"prompt": "é"}], "rewards": [{"name": "shapes"}], "steps": 1, "allow_unready": True}
    path = tmp_path / "job.json"
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_text(json.dumps(config, ensure_ascii=False), encoding=encoding)
        job = dipole(api, "jobs", "create", "--config", str(path)).strip()
        dipole(api, "jobs", "cancel", job)
    path.write_text(json.dumps({**config, "metadata": {"a": "\ud83d"}}))
    said = " ".join(dipole(api, "jobs", "create", "--config", str(path), status=1).split())
    assert "metadata.a: half of a character" in said


def test_prompts_of_a_text_file_are_taken(api: Any, tmp_path: Path) -> None:
    """`files upload` and `jobs create` send the name along: .txt is a prompt a line, .csv is told as CSV."""
    path = tmp_path / "prompts.txt"
    path.write_text("a red square\n\na blue circle\n")
    assert dipole(api, "files", "upload", str(path)).startswith("file-")
    job = dipole(
        api, "jobs", "create", "--prompts", str(path), "--reward", "shapes", "--steps", "1", "--allow-unready"
    ).strip()
    assert json.loads(dipole(api, "jobs", "show", job))["prompt_count"] == 2
    dipole(api, "jobs", "cancel", job)
    csv = path.rename(tmp_path / "prompts.csv")
    assert "is a CSV file" in " ".join(dipole(api, "files", "upload", str(csv), status=1).split())
