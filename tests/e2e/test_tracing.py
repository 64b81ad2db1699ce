"""One job's trace through every process of the platform, as a collector that speaks OTLP over HTTP gets it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from dipole.stack.stack import LocalReward, Stack

from .conftest import Platform

WAY = ["forward", "POST /v1/rank", "POST", "rank", "group", "step", "job"]  # from a child to its parent


class Collector:
    """Takes spans, as an OpenTelemetry collector does on port 4318."""

    def __init__(self) -> None:
        self.spans: dict[bytes, Any] = {}
        self.services: dict[bytes, str] = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def named(self, name: str) -> list[Any]:
        return [span for span in list(self.spans.values()) if span.name == name]

    def chain(self, span: Any) -> list[Any]:
        """The span and what it came from, as far as it is known."""
        found = [span]
        while (parent := self.spans.get(found[-1].parent_span_id)) is not None:
            found.append(parent)
        return found

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/v1/traces"
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    told = {each.key: each.value.string_value for each in resource.resource.attributes}
                    for span in (each for scope in resource.scope_spans for each in scope.spans):
                        collector.services[span.span_id] = told["service.name"]
                        collector.spans[span.span_id] = span
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        return Handler


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()


def test_a_jobs_trace_reaches_from_the_worker_to_a_rewards_forward(
    collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One setting, and a forward's span leads through the reward's server, the rank worker and the Celery message to
    the group, the step and the job; processes tell who they are, and nothing of prompts is told.
    """
    monkeypatch.setenv("DIPOLE_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    with Stack(tmp_path / "home", [LocalReward("shapes", "shapes", 8401)]) as stack:
        platform = Platform(stack)
        with platform.api:
            job = platform.submit([{"name": "shapes"}], steps=2, samples={"prompts": 0})
            platform.until(job, "succeeded")
            platform.wait_for(lambda: collector.named("job"), "the job's span, which is sent when it ends")
    (root,) = collector.named("job")
    told = {each.key: each.value.string_value for each in root.attributes}
    assert told["dipole.job_id"] == job
    assert told["dipole.state"] == "succeeded"
    forwards = collector.named("forward")
    assert len(forwards) == 2 * 2, "a forward's span for each group"
    for forward in forwards:
        chain = collector.chain(forward)
        assert [span.name for span in chain] == WAY
        assert chain[-1].span_id == root.span_id
        services = [collector.services[span.span_id] for span in chain]
        assert services == [*["reward-shapes"] * 2, *["rank-worker"] * 2, *["worker"] * 3]
    assert len(collector.named("queue")) == len(forwards)
    (created,) = [span for span in collector.named("POST /v1/fine_tuning") if collector.services[span.span_id] == "api"]
    assert created.trace_id != root.trace_id, "a job's trace is its own: workers come and go after the request"
    log = (tmp_path / "home/logs/worker.log").read_text()
    assert f'"trace_id": "{root.trace_id.hex()}"' in log, "a log line leads to the trace"
    everything = "".join(str(span) for span in collector.spans.values())
    assert not [prompt for prompt in ("circle", "square", "triangle") if prompt in everything]


def test_without_the_setting_nothing_is_imported() -> None:
    """A process that traces nothing has no OpenTelemetry in it, and its requests carry no header."""
    program = (
        "import sys\nfrom dipole import tracing\ntracing.configure_tracing('api')\n"
        "with tracing.trace_span('a', step=1):\n    assert tracing.current_headers() == {}\n"
        "tracing.start_span('b').end()\n"
        "print(*[name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []


def test_a_collector_that_is_away_holds_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans are dropped, work goes on, and the process ends."""
    monkeypatch.setenv("DIPOLE_OTLP_ENDPOINT", "http://127.0.0.1:9")
    program = (
        "from dipole import tracing\ntracing.configure_tracing('api')\n"
        "for number in range(5000):\n    with tracing.trace_span('a', number=number): pass\n"
        "assert tracing.current_headers() == {}\nprint('done')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["done"]
