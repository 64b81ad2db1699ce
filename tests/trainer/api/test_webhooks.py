"""Webhooks of ended jobs: signed, to allowed hosts alone, and sent whichever process is killed in between."""

from __future__ import annotations

import asyncio
import base64
import json
import queue
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from openai import OpenAI
from sqlalchemy import select, update
from standardwebhooks.webhooks import WebhookVerificationError

from dipole.errors import ConfigurationError
from dipole.settings import ApiSettings
from dipole.webhooks import RETRY_PAUSES_S
from dipole_trainer.api import webhook_sender
from dipole_trainer.api.app import create_app
from dipole_trainer.database.engine import Database, upgrade_database
from dipole_trainer.database.tables import EventRow, JobRow, WebhookRow
from dipole_trainer.jobs.store import JobStore
from dipole_trainer.jobs.webhooks import WebhookOutbox
from dipole_trainer.spec import TrainSpec
from dipole_trainer.trackers.figures import describe_config

from ...quiet_handler import QuietHandler

ROOT = Path(__file__).resolve().parents[3]
JOBS = "/v1/fine_tuning/jobs"
SECRET, OLD_SECRET = (f"whsec_{base64.b64encode(bytes([number] * 32)).decode()}" for number in (1, 2))


class Receiver:
    """Somebody's server: what comes is in `heard`, and `hold` keeps whoever sends waiting for an answer."""

    def __init__(self) -> None:
        self.heard: queue.Queue[tuple[dict[str, str], bytes]] = queue.Queue()
        self.status = 200
        self.let_go = threading.Event()
        self.let_go.set()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def next(self) -> tuple[dict[str, str], bytes]:
        return self.heard.get(timeout=60)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(QuietHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.heard.put(({name.lower(): value for name, value in self.headers.items()}, body))
                receiver.let_go.wait(60)
                self.send_response(receiver.status)
                self.send_header("Location", "http://127.0.0.1:1/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

        return Handler


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.let_go.set()
    receiver.server.shutdown()
    receiver.server.server_close()


def job_to_notify(url: str) -> dict[str, Any]:
    return {
        "model": "tiny-turbo", "prompts": [{"prompt": "a red square"}], "steps": 1, "candidates": 4, "notify": url,
        "method": {"drpo": {"positives": 1, "negatives": 1}},
        "rewards": [{"name": "shapes", "url": "http://127.0.0.1:9"}], "allow_unready": True,
    }  # fmt: skip


def spec_to_notify(url: str) -> TrainSpec:
    return TrainSpec.model_validate(
        {name: value for name, value in job_to_notify(url).items() if name != "allow_unready"}
    )


def open_store(folder: Path) -> JobStore:
    """Over a database of its own."""
    url = f"sqlite:///{folder}/jobs.db"
    upgrade_database(url)
    return JobStore(Database(url))


def wait_for_event(store: JobStore, job_id: str, kind: str) -> EventRow:
    for _ in range(600):
        events, _ = store.list_events(job_id, limit=100)
        if found := [event for event in events if event.kind == kind]:
            return found[0]
        time.sleep(0.1)
    raise AssertionError([event.kind for event in events])


def documented_reader() -> Callable[[str, dict[str, str], bytes], dict[str, Any]]:
    """The function that docs/webhooks.md tells receivers to write."""
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/webhooks.md").read_text(), flags=re.DOTALL)
    defined: dict[str, Any] = {}
    exec(block, defined)
    return cast(Callable[[str, dict[str, str], bytes], dict[str, Any]], defined["read_event"])


def test_a_webhook_survives_kills_of_whoever_sends_and_whoever_ends(
    receiver: Receiver, tmp_path: Path, api_server: Callable[..., AbstractContextManager[Any]]
) -> None:
    """A job that ends while no API runs is told of when one does; one that is killed while it sends leaves it to the
    next, under the same id; and what the documentation tells receivers to do believes it, and nothing else.
    """
    settings = {"WEBHOOK_HOSTS": "127.0.0.1", "WEBHOOK_SECRET": f"{SECRET},{OLD_SECRET}"}
    store = open_store(tmp_path)
    job = store.create_job(spec_to_notify(receiver.url)).id
    claim = store.claim_job("a worker", 30)
    assert claim is not None
    store.finish_job(claim, "succeeded")
    receiver.let_go.clear()
    with api_server(tmp_path, **settings) as server:
        first, body = receiver.next()
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    with store.database.writing() as session:  # as if its claim's minute had passed
        session.execute(update(WebhookRow).values(next_at=0.0))
    receiver.let_go.set()
    with api_server(tmp_path, **settings):
        again, repeated = receiver.next()
        assert (again["webhook-id"], repeated) == (first["webhook-id"], body)
        told = wait_for_event(store, job, "webhook_delivered")
        assert told.data == {"webhook": first["webhook-id"], "host": "127.0.0.1", "attempts": 2}
    assert receiver.heard.empty()
    store.database.close()
    read_event = documented_reader()
    for secret in (SECRET, OLD_SECRET):
        event = read_event(secret, again, repeated)
        assert event == {
            "object": "event", "id": again["webhook-id"], "type": "fine_tuning.job.succeeded",
            "created_at": event["created_at"], "data": {"id": job},
        }  # fmt: skip
    with pytest.raises(WebhookVerificationError):
        read_event(f"whsec_{base64.b64encode(bytes(32)).decode()}", again, repeated)
    with pytest.raises(WebhookVerificationError):
        read_event(SECRET, again, repeated.replace(b"succeeded", b"cancelled"))
    client = OpenAI(api_key="none", webhook_secret=SECRET)
    unwrapped = client.webhooks.unwrap(repeated.decode(), again)
    assert (unwrapped.type, unwrapped.data.id) == ("fine_tuning.job.succeeded", job)


def test_a_webhook_that_nobody_takes_is_given_up(tmp_path: Path) -> None:
    """It is tried as often as the pauses say, ever more rarely, and how it ended is an event that names the host."""
    store = open_store(tmp_path)
    job = store.create_job(spec_to_notify("https://a.example/of-my-own"))
    store.cancel_job(job.id)
    outbox, pauses = WebhookOutbox(store.database), []
    while due := outbox.take_due():
        assert outbox.take_due() == [], "one process has it"
        outbox.record_attempt(due[0].id, "ConnectError: nobody listens")
        with store.database.writing() as session:
            row = session.scalars(select(WebhookRow)).one()
            pauses.append(row.next_at)
            row.next_at = 0.0
    with store.database.reading() as session:
        assert session.scalars(select(WebhookRow.state)).one() == "given_up"
        assert session.scalar(select(JobRow.state)) == "cancelled"
    assert len(pauses) == len(RETRY_PAUSES_S) + 1
    (event, *_), _ = store.list_events(job.id)
    assert event.kind == "webhook_given_up"
    assert event.message == "The webhook to a.example was given up after 8 attempts: ConnectError: nobody listens"
    store.database.close()


def test_nothing_is_sent_to_a_host_that_is_not_allowed(receiver: Receiver, run_app: Callable[..., None]) -> None:
    """Such a job is refused with the field; a host that is allowed no longer is given up unheard; a redirect is no
    success, and is not followed.
    """
    jobs: list[str] = []

    async def refuse_all(api: httpx.AsyncClient, _: Any) -> None:
        refused = await api.post(JOBS, json=job_to_notify(receiver.url))
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, "notify")

    async def refuse_some(api: httpx.AsyncClient, state: Any) -> None:
        for url in ("http://169.254.169.254/", "http://127.0.0.1:1/", "http://user@127.0.0.1/", "file:///etc/passwd"):
            refused = await api.post(JOBS, json=job_to_notify(url))
            assert (refused.status_code, refused.json()["error"]["param"]) == (422, "notify[0]")
        receiver.status = 307
        for _ in range(2):
            created = (await api.post(JOBS, json=job_to_notify(receiver.url))).raise_for_status().json()
            assert created["notify"] == [receiver.url]
            jobs.append(created["id"])
        state.jobs.cancel_job(jobs[0])
        await asyncio.to_thread(receiver.next)

    async def give_up(_: httpx.AsyncClient, state: Any) -> None:
        state.jobs.cancel_job(jobs[1])
        event = await asyncio.to_thread(wait_for_event, state.jobs, jobs[1], "webhook_given_up")
        assert "DIPOLE_WEBHOOK_HOSTS does not allow" in event.message
        assert not [each for each in state.jobs.list_events(jobs[0])[0] if each.kind.startswith("webhook")]

    run_app(refuse_all, webhook_secret=SECRET)
    run_app(refuse_some, webhook_secret=SECRET, webhook_hosts=[f"127.0.0.1:{receiver.server.server_port}"])
    run_app(give_up, webhook_secret=SECRET, webhook_hosts=["elsewhere.example"])
    assert receiver.heard.empty()


@pytest.mark.parametrize("empty", [None, "", ",", " "])
def test_nothing_is_sent_without_a_secret(
    run_app: Callable[..., None], monkeypatch: pytest.MonkeyPatch, empty: str | None
) -> None:
    """What an older process owed waits for one that can sign it."""

    def refuse(*_: object) -> None:
        raise AssertionError("the outbox was opened")

    async def main(_: httpx.AsyncClient, __: Any) -> None:
        pass

    monkeypatch.setattr(webhook_sender, "WebhookOutbox", refuse)
    run_app(main, webhook_secret=empty)


def test_the_url_stays_out_of_what_is_handed_on() -> None:
    """A tracker on somebody's server does not learn it."""
    assert "notify" in TrainSpec.model_fields
    assert "notify" not in str(describe_config(spec_to_notify("http://a.example/of-my-own")))


def test_hosts_without_a_secret_stop_the_server(tmp_path: Path) -> None:
    """A webhook that is not signed could be anybody's; a secret that is none is refused where it is set."""
    for empty in (None, "", ",", " "):
        with pytest.raises(ConfigurationError, match="DIPOLE_WEBHOOK_SECRET"):
            create_app(
                ApiSettings.model_validate({"home": tmp_path, "webhook_hosts": ["a.example"], "webhook_secret": empty})
            )
    for wrong in ("a-secret-of-some-length", "whsec_short", "whsec_!!", f"{SECRET},{SECRET[6:]}"):
        with pytest.raises(ValueError, match="whsec_"):
            ApiSettings.model_validate({"webhook_secret": wrong})
    assert (
        json.loads(ApiSettings.model_validate({"webhook_secret": SECRET}).model_dump_json())["webhook_secret"] != SECRET
    )
